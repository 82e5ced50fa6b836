//! Standard output, whose reader may leave or be slow, and standard error, which may not be writable.

use crate::ends::{Ends, Event};
use anyhow::{Context, Result, bail};
use std::{
    fmt::Arguments,
    io::{self, ErrorKind, PipeReader, PipeWriter, Write, pipe, stderr, stdout},
    os::fd::AsFd,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
    time::{Duration, Instant},
};

/// Says it on standard error, if anybody can hear it (`eprint!` panics where not).
macro_rules! tell {
    ($($words:tt)*) => { $crate::out::tell(format_args!($($words)*)) };
}

/// The same, and ends the line.
macro_rules! tell_line {
    ($($words:tt)*) => { $crate::out::tell(format_args!("{}\n", format_args!($($words)*))) };
}

/// `tell!` and `tell_line!`.
pub(crate) fn tell(words: Arguments<'_>) {
    let mut err = stderr().lock();
    let _ = err.write_fmt(words).and_then(|()| err.flush());
}

/// Prints `text`. False: the reader has seen enough (`hoist doctor | head`), which is no error.
pub(crate) fn print(text: &str) -> Result<bool> {
    printed(write(text))
}

fn write(text: &str) -> io::Result<()> {
    let mut out = stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush())
}

fn printed(result: io::Result<()>) -> Result<bool> {
    match result {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        other => other.map(|()| true).context("printing (standard output)"),
    }
}

/// Lines that a thread of its own prints, so that a reader who is slow holds nothing up.
pub(crate) struct Lines {
    texts: SyncSender<String>,
    results: Receiver<io::Result<()>>,
    /// Readable when the thread is at its end.
    over: PipeReader,
    under_way: bool,
}

/// What became of a line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Offer {
    Taken,
    /// The one before has not been read.
    Busy,
    /// Nobody reads any more.
    Gone,
}

impl Lines {
    pub(crate) fn new() -> Result<Self> {
        let (texts, given) = sync_channel::<String>(1);
        let (tell, results) = sync_channel(2);
        let (over, end) = pipe().context("pipe")?;
        thread::spawn(move || print_all(&given, &tell, end));
        Ok(Self { texts, results, over, under_way: false })
    }

    /// Prints a line unless the one before is still waiting for its reader.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub(crate) fn offer(&mut self, text: String) -> Result<Offer> {
        if let Ok(result) = self.results.try_recv() {
            self.under_way = false;
            if !printed(result)? {
                return Ok(Offer::Gone);
            }
        }
        if self.under_way {
            return Ok(Offer::Busy);
        }
        self.under_way = self.texts.send(text).is_ok();
        Ok(if self.under_way { Offer::Taken } else { Offer::Gone })
    }

    /// Prints the last line, and gives up when it is not read in time.
    ///
    /// # Errors
    /// It was given up; standard output cannot be written.
    pub(crate) fn last(self, text: String, ends: &Ends, patience: Duration) -> Result<()> {
        let Self { texts, results, over, .. } = self;
        let _ = texts.send(text); // there is room for one beside that under way; without a thread its result says why
        drop(texts);
        let until = Instant::now() + patience;
        while ends.wait(&[over.as_fd()])? != Event::Done {
            if Instant::now() >= until {
                bail!("printing (standard output): nobody reads it, and the last line is lost");
            }
        }
        results.try_iter().try_for_each(|result| printed(result).map(drop))
    }
}

fn print_all(texts: &Receiver<String>, results: &SyncSender<io::Result<()>>, _end: PipeWriter) {
    for text in texts {
        let result = write(&text);
        let failed = result.is_err();
        if results.send(result).is_err() || failed {
            return;
        }
    }
}
