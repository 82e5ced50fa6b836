//! What every kind of bench plays on: the testbed, the plan, the rows, and the line of progress.

use super::{
    document::{Disturbed, Document, Metric, Point, Rows, SCHEMA},
    host::{self, Host},
    kinds::Kind,
    number,
    others::Watched,
    pace::Pace,
    plan::Plan,
    program::Program,
    search::{self, Guess},
    session::Signals,
    side::Side,
    status::StatusFile,
    trial::{self, Load, Retakes, Trial},
};
use anyhow::Result;
use hoist_wire::Testbed;
use std::{
    io::{IsTerminal, Write},
    time::Instant,
};

/// A run that goes on.
pub(crate) struct Stage {
    pub(crate) testbed: Testbed,
    pub(crate) plan: Plan,
    pub(crate) signals: Signals,
    retakes: Retakes,
    kind: Kind,
    began: Instant,
    pace: Pace,
    rows: Rows,
    disturbed: Disturbed,
    notes: Vec<String>,
    /// Where the kernel breaks, once it has been looked for.
    breaking_pps: Option<f64>,
    status: StatusFile,
    host: Host,
}

impl Stage {
    pub(crate) fn up(plan: Plan) -> Result<Self> {
        let (signals, status) = (Signals::block()?, StatusFile::make()?);
        let plan = Plan { status: Some(status.path.clone()), ..plan };
        Ok(Self {
            testbed: Testbed::builder().up()?,
            retakes: Retakes::of(&plan),
            pace: Pace::new(plan.repeats, plan.bench_time()),
            host: Host::here(plan.host_cpu),
            plan,
            signals,
            kind: Kind::All,
            began: Instant::now(),
            rows: Rows::default(),
            disturbed: Disturbed::default(),
            notes: Vec::new(),
            breaking_pps: None,
            status,
        })
    }

    /// Runs one bench: rounds until there are enough or the next would not fit.
    pub(crate) fn measure(&mut self, kind: Kind) -> Result<()> {
        self.kind = kind;
        self.began = Instant::now();
        self.retakes = Retakes::of(&self.plan);
        self.pace = Pace::new(self.plan.repeats, self.plan.bench_time());
        let mut bench = kind.prepare(self)?;
        while self.pace.starts(self.began.elapsed()) {
            bench.round(self)?;
        }
        Ok(())
    }

    /// Says of the bench that goes on that it ended too early: what was measured until then is kept.
    pub(crate) fn fail(&mut self, error: &anyhow::Error) {
        self.hush();
        tell_line!("hoist: {}: {error:#}", self.kind.name());
        self.note(format!("ended too early, what there is of it is shown: {error:#}"));
    }

    /// The sides of the run that this bench has, in the order in which they take turns.
    pub(crate) fn sides(&self, of: &[Side]) -> Vec<Side> {
        self.plan.sides.iter().copied().filter(|side| of.contains(side)).collect()
    }

    /// The sides of the run and its peers, for benches that any receiver can run.
    pub(crate) fn receivers(&self) -> Vec<Side> {
        self.plan.sides.clone()
    }

    /// Leaves out peers that cannot be started here, and says why.
    pub(crate) fn try_peers(&mut self) {
        for side in self.receivers().into_iter().filter(|side| matches!(side, Side::Peer(_))) {
            let end = self.testbed.host();
            let started = side
                .sink(&self.plan, trial::PORT)
                .and_then(|command| Program::ready(end, self.plan.host_cpu, side, &command));
            if let Err(error) = started {
                self.notes.push(format!("the peer {} was left out: {error:#}", side.name()));
                self.plan.sides.retain(|other| *other != side);
            }
        }
    }

    /// Keeps one sample.
    pub(crate) fn record(&mut self, side: &str, point: Option<&Point>, metric: Metric, sample: f64) {
        self.rows.add(self.kind.name(), side, point.cloned(), metric, sample);
    }

    /// Keeps a sentence that readers of the figures need; the same one only once.
    pub(crate) fn note(&mut self, text: String) {
        let text = format!("{}: {text}", self.kind.name());
        if !self.notes.contains(&text) {
            self.notes.push(text);
        }
    }

    /// Shows where the run is, on a terminal only.
    pub(crate) fn show(&self, side: &str, point: Option<&Point>) {
        if std::io::stderr().is_terminal() {
            tell!("\r\x1b[K{}", self.progress(side, point));
            let _ = std::io::stderr().flush();
        }
    }

    fn progress(&self, side: &str, point: Option<&Point>) -> String {
        let round = match self.pace.round() {
            0 => "preparing".into(),
            round => format!("repeat {round} of {}", self.pace.repeats()),
        };
        let point =
            point.map(|point| format!("  {} {}", point.name, number::with_unit(point.value, &point.unit)));
        let left = self.pace.left(self.began.elapsed()).map(|left| format!("  {} s left", left.as_secs()));
        format!(
            "{}  {side}  {round}{}{}",
            self.kind.name(),
            point.unwrap_or_default(),
            left.unwrap_or_default()
        )
    }

    /// A UDP trial of one side; taken again when somebody disturbed it.
    pub(crate) fn trial(&mut self, side: Side, load: &Load) -> Result<Trial> {
        self.trial_beside(side, load, None)
    }

    /// The same, while another program runs that belongs to what is measured.
    pub(crate) fn trial_beside(
        &mut self,
        side: Side,
        load: &Load,
        beside: Option<&Program>,
    ) -> Result<Trial> {
        let trial = self.retaken(side, |testbed, plan| trial::attempt(testbed, plan, side, load, beside))?;
        if trial.uncalled > 0 {
            self.note(format!("{} counts every frame: what was beyond those sent is left out", side.name()));
        }
        Ok(trial)
    }

    /// What `attempt` gives, taken again when somebody disturbed it, and judged: every bench measures by it.
    pub(crate) fn retaken<T: Watched>(
        &mut self,
        side: Side,
        mut attempt: impl FnMut(&Testbed, &Plan) -> Result<T>,
    ) -> Result<T> {
        let Self { testbed, plan, signals, status, .. } = self;
        let result = self.retakes.take(plan, || {
            signals.check()?;
            status.clear()?;
            attempt(testbed, plan)
        })?;
        self.count_trial(result.taken().is_too_much(&self.plan));
        if side == Side::Hoist {
            self.judge_lifting()?;
        }
        Ok(result)
    }

    /// Counts one trial, for the share of disturbed ones.
    fn count_trial(&mut self, is_disturbed: bool) {
        self.disturbed.of += 1;
        self.disturbed.trials += usize::from(is_disturbed);
    }

    /// Readers must know when what `hoist run` says of a trial is not what the side's name promises.
    fn judge_lifting(&mut self) -> Result<()> {
        let lifted = self.status.read()?;
        if lifted.percent < 99.0 && self.kind.is_lifted() {
            self.note("less than 99 % of a trial of hoist was lifted".into());
        }
        if lifted.leaked_frames != 0 {
            self.note(format!("hoist run lost track of {} frames", lifted.leaked_frames));
        }
        self.host.mode = lifted.mode.or(self.host.mode.take());
        Ok(())
    }

    /// How much of the last trial's TCP was lifted, in per cent; readers must know when it should have been all.
    pub(crate) fn lifted_stream(&mut self, name: &str, is_told_to_lift: bool) -> Result<f64> {
        let percent = self.status.read()?.stream_percent;
        if is_told_to_lift && percent < 99.0 {
            self.note(format!("less than 99 % of a trial of {name} was lifted"));
        }
        Ok(percent)
    }

    /// The highest rate that the kernel takes without loss, looked for once in a run.
    pub(crate) fn breaking_pps(&mut self) -> Result<f64> {
        match self.breaking_pps {
            Some(pps) => Ok(pps),
            None => {
                let pps = search::run(self, Side::Kernel, KERNEL_GUESS)?.pps;
                self.note(format!("the kernel breaks at {}", number::with_unit(pps, "packets/s")));
                Ok(*self.breaking_pps.insert(pps))
            }
        }
    }

    /// A bench has found it: no need to look for it again.
    pub(crate) fn learn_breaking(&mut self, pps: f64) {
        self.breaking_pps = Some(pps).filter(|pps| *pps > 0.0);
    }

    /// The round of the bench that goes on, from 1; 0 while it prepares.
    pub(crate) fn round(&self) -> usize {
        self.pace.round()
    }

    /// Everything that was found so far.
    pub(crate) fn document(&self, name: &str) -> Result<Document> {
        Ok(Document {
            schema: SCHEMA,
            name: name.into(),
            command: host::command(),
            commit: host::COMMIT.into(),
            host: self.host.clone(),
            settings: serde_json::to_value(&self.plan)?,
            rows: self.rows.as_slice().to_vec(),
            disturbed: self.disturbed,
            notes: self.notes.clone(),
        })
    }

    /// Removes the line of progress.
    pub(crate) fn hush(&self) {
        if std::io::stderr().is_terminal() {
            tell!("\r\x1b[K");
        }
    }
}

/// Where the search for the kernel's breaking point begins.
const KERNEL_GUESS: Guess = Guess::rough(0.6e6);
