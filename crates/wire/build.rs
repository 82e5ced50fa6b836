//! Compiles the generator and the sink that shows the limit.

fn main() {
    hoist_bpf_build::compile("wire");
    hoist_bpf_build::compile("sink");
}
