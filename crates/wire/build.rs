//! Compiles the generators, the emulated link, the sink that shows the limit and the one that shows the wire's.

fn main() {
    println!("cargo::rerun-if-changed=../../bpf/wire.h");
    println!("cargo::rerun-if-changed=../../bpf/pace.h");
    hoist_bpf_build::compile("wire");
    hoist_bpf_build::compile("dnswire");
    hoist_bpf_build::compile("sink");
    hoist_bpf_build::compile("tcpwire");
    hoist_bpf_build::compile("link");
    hoist_bpf_build::compile("discard");
}
