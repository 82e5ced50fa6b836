//! Compiles the generator.

fn main() {
    hoist_bpf_build::compile("wire");
}
