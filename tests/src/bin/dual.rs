//! `dual CASE`: runs one case and exits 0, or panics saying what did not hold.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let name = args.next().unwrap_or_default();
    match hoist_tests::cases::find(&name) {
        Some(case) => {
            (case.run)(&mut hoist_tests::cases::Ctx::from_env());
            ExitCode::SUCCESS
        }
        None => {
            eprintln!("usage: dual CASE; cases:");
            let all = hoist_tests::cases::ALL.iter().chain(hoist_tests::cases::STREAMS);
            all.for_each(|case| eprintln!("  {}", case.name));
            ExitCode::from(2)
        }
    }
}
