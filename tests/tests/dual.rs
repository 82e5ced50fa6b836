//! Every case natively and hoisted. Names are `native::module::case` and `hoisted::module::case`.

use hoist_tests::{
    cases::find,
    lab::{Lab, Mode, may_run},
};

fn run(mode: Mode, name: &str) {
    if may_run() {
        let case = find(name).expect("a case of this name");
        Lab::up().and_then(|lab| lab.run_case(mode, case)).unwrap_or_else(|error| panic!("{error:#}"));
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
