//! Compiles the generators and the sink that shows the limit.

fn main() {
    hoist_bpf_build::compile("wire");
    hoist_bpf_build::compile("sink");
    hoist_bpf_build::compile("tcpwire");
}
