//! Every case natively, hoisted, and hoisted with threads that spin. Names are `native::module::case`, `hoisted::…`, `spinning::…`.

use hoist_tests::{
    cases::{Case, Expect, find},
    lab::{Lab, Mode, may_run},
};

fn run(mode: Mode, name: &str) {
    if may_run() {
        let case = find(name).expect("a case of this name");
        Lab::up().and_then(|lab| lab.run_case(mode, case)).unwrap_or_else(|error| panic!("{error:#}"));
    }
}

fn spin(name: &str) {
    if may_run() {
        let case = Case { expect: Expect::Any, ..*find(name).expect("a case of this name") };
        let spinning = Lab::up().and_then(|mut lab| {
            lab.options = vec!["--spin-us".into(), "50".into()];
            lab.run_case(Mode::Hoisted, &case)
        });
        spinning.unwrap_or_else(|error| panic!("{error:#}"));
    }
}

macro_rules! tests {
    ($($module:ident { $($case:ident: $expect:ident $(($reason:literal))?,)* })*) => {
        mod native {
            $(mod $module { $(
                #[test]
                fn $case() {
                    crate::run(crate::Mode::Native, concat!(stringify!($module), "::", stringify!($case)));
                }
            )* })*
        }
        mod spinning {
            $(mod $module { $(
                #[test]
                fn $case() {
                    crate::spin(concat!(stringify!($module), "::", stringify!($case)));
                }
            )* })*
        }
        mod hoisted {
            $(mod $module { $(
                #[test]
                fn $case() {
                    crate::run(crate::Mode::Hoisted, concat!(stringify!($module), "::", stringify!($case)));
                }
            )* })*
        }
    };
}
hoist_tests::with_cases!(tests);
