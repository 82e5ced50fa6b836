//! `hoist bench` from outside: its object, its files, what it refuses, and what it leaves behind.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};

fn hoist(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hoist"));
    command.arg("bench").args(arguments).stdin(Stdio::null());
    command
}

fn output(arguments: &[&str]) -> Output {
    hoist(arguments).output().unwrap()
}

fn complaint(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A run needs root, two CPUs, and the sinks and the shim beside `hoist`.
fn can_run() -> bool {
    let beside = Path::new(env!("CARGO_BIN_EXE_hoist")).parent().unwrap();
    let built =
        ["hoist-sink", "hoist-raw-sink", "libhoist_shim.so"].iter().all(|name| beside.join(name).exists());
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let can = nix::unistd::geteuid().is_root() && cpus > 1 && built;
    if !can {
        eprintln!("skipped: needs root, two CPUs, and `cargo build --release -p hoist-wire -p hoist-shim`");
    }
    can
}

/// Runs share the machine's two CPUs: one at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Namespaces of testbeds (and with them their devices) whose maker is gone.
fn left_behind() -> Vec<String> {
    let namespaces = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let names = namespaces.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let maker = |name: &str| name.strip_prefix("hoist-")?.split('-').next()?.parse::<i32>().ok();
    names.filter(|name| maker(name).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())).collect()
}

/// Processes whose command line names a directory or program of this build and a word.
fn running(word: &str) -> Vec<i32> {
    let own = Path::new(env!("CARGO_BIN_EXE_hoist")).parent().unwrap().display().to_string();
    let ids = fs::read_dir("/proc").unwrap().flatten();
    let ids = ids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    ids.filter(|id| {
        let line = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        line.contains(&own) && line.contains(word) && *id != std::process::id() as i32
    })
    .collect()
}

struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("hoist-bench-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const SMALLEST: [&str; 6] = ["udp-overload", "--quick", "--repeats", "1", "--rates", "0.2M"];

#[test]
fn one_object_is_printed_and_nothing_is_left_behind() {
    if !can_run() {
        return;
    }
    let _alone = ALONE.lock().unwrap();
    let directory = Directory::new("object");
    let kept = directory.0.join("run").display().to_string();
    let out = output(&[&SMALLEST[..], &["--json", "--save", &kept]].concat());
    assert!(out.status.success(), "{}", complaint(&out));
    let run: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((&run["schema"], &run["name"]), (&1.into(), &"udp-overload".into()));
    assert!(run["command"].as_str().unwrap().starts_with("hoist bench udp-overload --quick"));
    assert_eq!(run["settings"]["repeats"], 1);
    assert!(run["host"]["mode"].as_str().unwrap().contains("copy"), "{}", run["host"]);
    assert_eq!(run["disturbed"]["of"], 4, "one trial a side");
    check_rows(run["rows"].as_array().unwrap());
    check_files(&kept, &out.stdout);
    assert_eq!((left_behind(), running("9000")), (vec![], vec![]));
}

fn check_rows(rows: &[Value]) {
    for side in ["kernel", "kernel-tuned", "hoist", "limit"] {
        let row =
            |metric: &str| rows.iter().find(|row| row["side"] == side && row["metric"] == metric).unwrap();
        let goodput = row("goodput");
        assert_eq!(
            goodput["point"],
            serde_json::json!({ "name": "offered", "value": 2e5, "unit": "packets/s" })
        );
        assert_eq!((&goodput["bench"], &goodput["unit"]), (&"udp-overload".into(), &"packets/s".into()));
        assert_eq!(goodput["samples"].as_array().unwrap().len(), 1);
        assert!(goodput["median"].as_f64().unwrap() > 0.0, "{side} received something");
        assert_eq!(row("reordered")["max"], 0.0, "{side} keeps order");
        let part = |metric: &str| row(metric)["median"].as_f64().unwrap();
        let parts: f64 =
            ["NAPI", "the program", "hoist run"].map(|of| part(&format!("CPU time of {of}"))).iter().sum();
        assert!((part("CPU time") - parts).abs() < 1.0, "{side}: the parts make the whole");
    }
}

fn check_files(kept: &str, printed: &[u8]) {
    let stored = fs::read(format!("{kept}/run.json")).unwrap();
    assert_eq!(String::from_utf8_lossy(&stored).trim(), String::from_utf8_lossy(printed).trim());
    let page = fs::read_to_string(format!("{kept}/index.html")).unwrap();
    let picture = fs::read_to_string(format!("{kept}/udp-overload.svg")).unwrap();
    assert!(page.contains(picture.trim()) && page.contains("Where Hoist loses"));
    let again = output(&["udp-overload", "--save", kept]);
    assert_eq!(again.status.code(), Some(1));
    assert!(complaint(&again).contains("holds a run already"));
    let drawn = format!("{kept}-drawn");
    assert!(output(&["report", kept, &drawn]).status.success());
    assert_eq!(fs::read_to_string(format!("{drawn}/udp-overload.svg")).unwrap(), picture);
    assert_eq!(fs::read(format!("{drawn}/run.json")).unwrap(), stored);
    let same = output(&["compare", kept, kept, "--json"]);
    let same: Value = serde_json::from_slice(&same.stdout).unwrap();
    assert!(same["rows"].as_array().unwrap().iter().all(|row| row["verdict"] == "too-few"));
}

#[test]
fn after_an_error_the_other_benches_go_on() {
    if !can_run() {
        return;
    }
    let _alone = ALONE.lock().unwrap();
    // Beside this copy the client of round trips is missing.
    let directory = Directory::new("parts");
    let built = Path::new(env!("CARGO_BIN_EXE_hoist")).parent().unwrap();
    for name in ["hoist", "hoist-sink"] {
        fs::copy(built.join(name), directory.0.join(name)).unwrap();
    }
    let arguments = [&["bench", "udp-rr"], &SMALLEST[..], &["--sides", "kernel", "--json"]].concat();
    let out = Command::new(directory.0.join("hoist")).args(arguments).output().unwrap();
    assert_eq!(out.status.code(), Some(1), "{}", complaint(&out));
    assert!(complaint(&out).contains("hoist: udp-rr: "), "{}", complaint(&out));
    let run: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert!(run["rows"].as_array().unwrap().iter().all(|row| row["bench"] == "udp-overload"));
    assert!(!run["rows"].as_array().unwrap().is_empty());
    assert!(run["notes"][0].as_str().unwrap().starts_with("udp-rr: ended too early"), "{}", run["notes"]);
}

/// A long run that has made its namespaces.
fn started(arguments: &[&str]) -> Child {
    let mut child = hoist(&[&["udp-lossless", "--sides", "kernel"], arguments].concat())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let end = Instant::now() + Duration::from_secs(20);
    while running("9000").is_empty() {
        assert!(child.try_wait().unwrap().is_none() && Instant::now() < end, "the bench starts its sink");
        std::thread::yield_now();
    }
    child
}

#[test]
fn an_interrupted_run_keeps_what_there_is_and_removes_what_it_made() {
    if !can_run() {
        return;
    }
    let _alone = ALONE.lock().unwrap();
    let directory = Directory::new("interrupted");
    let kept = directory.0.join("run");
    let child = started(&["pass-cost", "--save", kept.to_str().unwrap()]);
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let out = child.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    let run: Value = serde_json::from_slice(&fs::read(kept.join("run.json")).unwrap()).unwrap();
    let notes = run["notes"].as_array().unwrap();
    assert_eq!(notes.len(), 1, "pass-cost did not begin: {notes:?}");
    assert!(notes[0].as_str().unwrap().starts_with("udp-lossless: ended too early"), "{notes:?}");
    assert!(notes[0].as_str().unwrap().ends_with("interrupted"), "{notes:?}");
    assert!(String::from_utf8_lossy(&out.stdout).contains("note: udp-lossless: ended too early"));
    assert!(kept.join("index.html").exists());
    assert_eq!((left_behind(), running("9000")), (vec![], vec![]));
}

#[test]
fn a_killed_run_changes_no_session_and_ends_what_it_started() {
    if !can_run() {
        return;
    }
    let _alone = ALONE.lock().unwrap();
    let nice = || fs::read_to_string("/proc/self/autogroup").unwrap_or_default();
    let before = nice();
    let mut child = started(&[]);
    child.kill().unwrap();
    child.wait().unwrap();
    let end = Instant::now() + Duration::from_secs(20);
    while !(running("udp-lossless").is_empty() && running("9000").is_empty() && left_behind().is_empty()) {
        assert!(Instant::now() < end, "ends within 20 s: {:?}", running("udp-lossless"));
        std::thread::yield_now();
    }
    assert_eq!(nice(), before);
}

#[test]
fn names_and_numbers_that_make_no_sense_are_usage_errors() {
    let wrong = [
        (&["udp-overlod"][..], "udp-overload"),
        (&[][..], "Usage"),
        (&["udp-overload", "--repeats", "0"][..], "--repeats"),
        (&["udp-overload", "--repeats", "101"][..], "--repeats"),
        (&["udp-overload", "--rates", "fast"][..], "is no rate"),
        (&["udp-overload", "--rates", "1M,0"][..], "more than 0"),
        (&["udp-overload", "--tolerated-loss", "nan"][..], "is no fraction"),
        (&["udp-overload", "--tolerated-loss", "1"][..], "is no fraction"),
        (&["udp-overload", "--size", "63"][..], "--size"),
        (&["udp-overload", "--flows", "0"][..], "--flows"),
        (&["udp-overload", "--flows", "16777217"][..], "--flows"),
        (&["udp-overload", "--sides", "kernel,window"][..], "kernel-tuned"),
        (&["udp-overload", "compare"][..], "compare"),
        (&["compare", "one.json"][..], "SECOND"),
        (&["steering"][..], "--simulate"),
        (&["udp-rr", "--simulate"][..], "hoist bench steering --simulate"),
        (&["steering", "--simulate", "--size", "100"][..], "--size"),
        (&["gro", "udp-rr"][..], "gro has no testbed"),
        (&["all", "gro"][..], "gro has no testbed"),
        (&["gro", "--simulate"][..], "hoist bench steering --simulate"),
        (&["gro", "--sides", "kernel"][..], "gro has no testbed"),
        (&["gro", "--size", "100"][..], "gro has no testbed"),
        (&["all", "gro-wire"][..], "goes with no other bench"),
        (&["gro", "--repeats", "0"][..], "--repeats"),
        (&["gro", "--flows", "0"][..], "--flows"),
    ];
    for (arguments, why) in wrong {
        let out = output(arguments);
        assert_eq!(out.status.code(), Some(2), "{arguments:?}");
        assert!(complaint(&out).contains(why), "{arguments:?}: {}", complaint(&out));
    }
}

/// It needs nothing, so it runs wherever tests do.
#[test]
fn steering_is_simulated_and_kept_and_the_same_seed_brings_the_same() {
    let directory = Directory::new("steering");
    let run = |name: &str| {
        let kept = directory.0.join(name).display().to_string();
        let out = output(&["steering", "--simulate", "--quick", "--repeats", "1", "--json", "--save", &kept]);
        assert_eq!(out.status.code(), Some(0), "{}", complaint(&out));
        for file in ["run.json", "index.html", "steering.svg"] {
            assert!(Path::new(&kept).join(file).exists(), "{file}");
        }
        let document: Value = serde_json::from_slice(&out.stdout).unwrap();
        let rows = document["rows"].as_array().unwrap().clone();
        rows.into_iter().filter(|row| row["metric"] != "decisions").collect::<Vec<_>>()
    };
    let rows = run("one");
    assert_eq!(rows, run("two"));
    let median = |side: &str, metric: &str, rings: f64| {
        let is_it = |row: &&Value| {
            row["side"] == side
                && row["metric"] == metric
                && row["point"]["name"] == "rings"
                && row["point"]["value"] == rings
        };
        rows.iter().find(is_it).unwrap()["median"].as_f64().unwrap()
    };
    assert!(median("hoist", "busiest ring", 8.0) < 1.1 && median("hash", "busiest ring", 8.0) > 1.2);
    assert!(rows.iter().filter(|row| row["metric"] == "could be overtaken").all(|row| row["median"] == 0.0));
}

#[test]
fn the_kernels_gro_merges_what_the_lab_says_it_would() {
    if !can_run() {
        return;
    }
    let _alone = ALONE.lock().unwrap();
    let out = output(&["gro-wire", "--quick", "--repeats", "1", "--json"]);
    assert_eq!(out.status.code(), Some(0), "{}", complaint(&out));
    let document: Value = serde_json::from_slice(&out.stdout).unwrap();
    let rows = document["rows"].as_array().unwrap();
    let ratios = |side: &str| {
        let is_it = |row: &&Value| row["side"] == side && row["metric"] == "merge ratio";
        rows.iter().filter(is_it).map(|row| row["median"].as_f64().unwrap()).collect::<Vec<_>>()
    };
    let (kernel, lab) = (ratios("kernel"), ratios("lab"));
    assert_eq!((kernel.len(), lab.len()), (4, 4), "one flow and a thousand, of one host and of many");
    // a machine that is disturbed has short polls, so only what holds of both is asked for
    for ratios in [kernel, lab] {
        assert!(ratios.iter().all(|ratio| *ratio > 1.0) && ratios[0] > 3.0 * ratios[1], "{ratios:?}");
    }
    assert!(left_behind().is_empty());
}

/// It needs nothing, too.
#[test]
fn gro_is_matched_in_memory_and_kept_and_only_times_differ_between_runs() {
    let directory = Directory::new("gro");
    let run = |name: &str| {
        let kept = directory.0.join(name).display().to_string();
        let out = output(&["gro", "--quick", "--repeats", "1", "--json", "--save", &kept]);
        assert_eq!(out.status.code(), Some(0), "{}", complaint(&out));
        for file in ["run.json", "index.html", "gro.svg"] {
            assert!(Path::new(&kept).join(file).exists(), "{file}");
        }
        let document: Value = serde_json::from_slice(&out.stdout).unwrap();
        let rows = document["rows"].as_array().unwrap().clone();
        let (times, counts): (Vec<_>, Vec<_>) =
            rows.into_iter().partition(|row| row["metric"].as_str().unwrap().starts_with("CPU time"));
        assert!(times.iter().all(|row| row["median"].as_f64().unwrap() > 0.0));
        counts
    };
    let rows = run("one");
    assert_eq!(rows, run("two"));
    let median = |side: &str, metric: &str| {
        let is_it = |row: &&Value| {
            row["side"] == side
                && row["metric"] == metric
                && row["point"]["name"] == "flows of one host, no device hash"
                && row["point"]["value"] == 100.0
        };
        rows.iter().find(is_it).unwrap()["median"].as_f64().unwrap()
    };
    // of one host, addresses rule nothing out; the order changes what is looked at, and nothing that comes out
    assert_eq!(median("l3-first", "compared ports"), median("l3-first", "compared addresses"));
    assert!(median("l4-first", "compared addresses") < 1.0);
    for order in ["l3-first", "l4-first", "hash-first"] {
        assert_eq!(median(order, "merge ratio"), median("kernel", "merge ratio"));
        assert!(median(order, "walked") < median("kernel", "walked") / 3.0 + 0.5);
    }
}

#[test]
fn files_that_are_no_runs_are_refused_with_a_sentence() {
    let directory = Directory::new("files");
    let wrong = [
        (directory.file("cut.json", r#"{"schema":1,"name":"udp"#), "cut short"),
        (directory.file("other.json", r#"{"plan":{}}"#), "no run of `hoist bench`"),
        (directory.file("later.json", r#"{"schema":2}"#), "schema 2 is not 1"),
        (directory.file("text.json", "goodput 3"), "no JSON"),
        (directory.0.join("missing.json").display().to_string(), "reading"),
    ];
    for (path, why) in wrong {
        for arguments in [vec!["compare", &path, &path], vec!["report", &path, "nowhere"]] {
            let out = output(&arguments);
            assert_eq!(out.status.code(), Some(1), "{arguments:?}");
            assert!(complaint(&out).contains(why) && complaint(&out).contains(&path), "{}", complaint(&out));
        }
    }
}
