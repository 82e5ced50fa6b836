//! The native API over TCP: seeded streams, read by chunks of all sizes and by reads among them, over good and bad links. Natively and hoisted.

use anyhow::{Context, Result, ensure};
use hoist_tests::{
    lab::{LIMIT, Lab, Mode, Running, bin, may_run},
    tally::{Tally, draw},
};
use hoist_wire::{Direction, Impairment, Link, Testbed};
use std::{fs, path::Path};

const PORT: u16 = 7_000;
const BYTES: usize = 16 << 20;

/// What a stream goes through.
#[derive(Default)]
struct Scenario {
    seed: u64,
    /// Pieces the reader keeps before it looks at them.
    keep: usize,
    link: Impairment,
    /// Of the bytes so many in a hundred must be borrowed.
    borrowed: u64,
}

impl Scenario {
    fn run(&self) {
        if may_run() {
            let run = |mode| self.run_in(mode).unwrap_or_else(|error| panic!("{mode:?}: {error:#}"));
            [Mode::Native, Mode::Hoisted].into_iter().for_each(run);
        }
    }

    fn run_in(&self, mode: Mode) -> Result<()> {
        let mut lab = Lab::on(Testbed::builder().queues(2).up()?)?;
        lab.options = vec!["--tcp".into(), "lift".into()];
        let sent = content(self.seed);
        fs::write(lab.path("sent"), &sent)?;
        let argv = [text(&bin("chunk-sink")?), lab.host4(PORT).to_string()];
        let argv = [&argv[..], &[self.seed.to_string(), self.keep.to_string()]].concat();
        let mut sink = lab.program(mode, &argv)?.start()?;
        sink.until_listening(PORT)?;
        let impaired = self.link != Impairment::default();
        let link = impaired.then(|| Link::start(&lab.testbed, Direction::ToHost, &self.link)).transpose()?;
        send(&lab)?;
        sink.succeed(LIMIT)?;
        drop(link);
        self.judge(mode, &sink, &sent)
    }

    fn judge(&self, mode: Mode, sink: &Running, sent: &[u8]) -> Result<()> {
        let output = sink.output();
        let received = output.lines().find_map(Tally::parse).with_context(|| output.clone())?;
        ensure!(received.same(&Tally::of(sent)), sink.fail("received something else"));
        if mode == Mode::Native {
            ensure!(received.borrowed == 0, sink.fail("nobody lends natively"));
            return Ok(());
        }
        let least = sent.len() as u64 * self.borrowed / 100;
        ensure!(received.borrowed >= least, sink.fail(&format!("less than {} % borrowed", self.borrowed)));
        ensure!(sink.report()?.leaked_frames == 0, sink.fail("frames leaked"));
        Ok(())
    }
}

fn content(mut seed: u64) -> Vec<u8> {
    (0..BYTES / 8).flat_map(|_| draw(&mut seed).to_ne_bytes()).collect()
}

fn send(lab: &Lab) -> Result<()> {
    let to = format!("TCP:{}", lab.host4(PORT));
    let mut client = lab.wire_program(&["socat", "-u", &text(&lab.path("sent")), &to])?.start()?;
    client.succeed(LIMIT)
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[test]
fn a_stream_comes_whole_in_chunks() {
    Scenario { seed: 1, borrowed: 50, ..Scenario::default() }.run();
}

#[test]
fn chunks_that_are_kept_do_not_change() {
    Scenario { seed: 2, keep: 500, borrowed: 50, ..Scenario::default() }.run();
}

/// More pieces than there are frames.
#[test]
fn a_keeper_of_a_whole_stream_starves_nobody() {
    Scenario { seed: 3, keep: usize::MAX, borrowed: 2, ..Scenario::default() }.run();
}

#[test]
fn a_lossy_link_that_reorders_and_doubles_changes_nothing() {
    let link = Impairment { loss: 0.01, reorder: 0.02, duplicate: 0.01, seed: 4, ..Impairment::default() };
    Scenario { seed: 4, keep: 100, link, borrowed: 20 }.run();
}

#[test]
fn a_corrupting_link_changes_nothing() {
    let link = Impairment { corrupt: 0.005, seed: 5, ..Impairment::default() };
    Scenario { seed: 5, keep: 100, link, borrowed: 20 }.run();
}
