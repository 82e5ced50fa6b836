//! Builds BPF objects from `bpf/*.bpf.c` with clang, for the build scripts of the crates that load them.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

/// Compiles `bpf/{name}.bpf.c` to `$OUT_DIR/{name}.bpf.o`.
///
/// Ends the build script with one sentence when clang or a header is missing.
pub fn compile(name: &str) {
    let bpf = bpf_dir();
    let source = bpf.join(format!("{name}.bpf.c"));
    let object =
        PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join(format!("{name}.bpf.o"));
    println!("cargo::rerun-if-changed={}", source.display());
    for header in headers(&bpf) {
        println!("cargo::rerun-if-changed={}", header.display());
    }
    println!("cargo::rerun-if-env-changed=CLANG");
    if let Err(why) = run_clang(&bpf, &source, &object) {
        println!("cargo::error={why}");
        std::process::exit(1);
    }
}

/// A program includes few of them; to build too often does no harm.
fn headers(bpf: &Path) -> Vec<PathBuf> {
    let files = bpf.read_dir().into_iter().flatten().flatten().map(|entry| entry.path());
    files.filter(|path| path.extension().is_some_and(|e| e == "h")).collect()
}

fn bpf_dir() -> PathBuf {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    manifest.join("../../bpf")
}

fn run_clang(bpf: &Path, source: &Path, object: &Path) -> Result<(), String> {
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".into());
    let output = Command::new(&clang)
        .args(["-target", "bpf", "-mcpu=v3", "-O2", "-g", "-Wall", "-Wextra", "-Werror"])
        .args(["-Wno-unused-parameter", "-Wno-sign-compare"])
        .arg(format!("-I/usr/include/{}-linux-gnu", env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default()))
        .arg("-I")
        .arg(bpf)
        .arg("-c")
        .arg(source)
        .arg("-o")
        .arg(object)
        .output()
        .map_err(|e| format!("Hoist's BPF programs need clang 14 or newer, and {clang:?} did not start ({e}): run `make deps` (apt-get install clang libbpf-dev linux-libc-dev), or set CLANG to its path."))?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let hint = if stderr.contains("file not found") { " A header is missing: run `make deps`." } else { "" };
    Err(format!("clang could not compile {}.{hint} {}", source.display(), stderr.replace('\n', " | ")))
}
