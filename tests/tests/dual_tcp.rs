//! Every case of streams natively, under `hoist run --tcp lift`, and the same with threads that spin.

use hoist_tests::{
    cases::find,
    lab::{Lab, Mode, may_run},
};

fn run(mode: Mode, options: &[&str], name: &str) {
    if may_run() {
        let case = find(name).expect("a case of this name");
        let ran = Lab::up().and_then(|mut lab| {
            lab.options = ["--tcp", "lift"].iter().chain(options).map(Into::into).collect();
            lab.run_case(mode, case)
        });
        ran.unwrap_or_else(|error| panic!("{error:#}"));
    }
}

macro_rules! tests {
    ($($module:ident { $($case:ident: $expect:ident $(($reason:literal))?,)* })*) => {
        mod native {
            $(mod $module { $(
                #[test]
                fn $case() {
                    crate::run(crate::Mode::Native, &[], concat!(stringify!($module), "::", stringify!($case)));
                }
            )* })*
        }
        mod hoisted {
            $(mod $module { $(
                #[test]
                fn $case() {
                    crate::run(crate::Mode::Hoisted, &[], concat!(stringify!($module), "::", stringify!($case)));
                }
            )* })*
        }
        mod spinning {
            $(mod $module { $(
                #[test]
                fn $case() {
                    let name = concat!(stringify!($module), "::", stringify!($case));
                    crate::run(crate::Mode::Hoisted, &["--spin-us", "50"], name);
                }
            )* })*
        }
    };
}
hoist_tests::with_tcp_cases!(tests);
