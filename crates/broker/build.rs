//! Compiles the BPF programs.

fn main() {
    hoist_bpf_build::compile("steer");
    hoist_bpf_build::compile("ride_in");
    hoist_bpf_build::compile("conns");
    hoist_bpf_build::compile("napi");
    hoist_bpf_build::compile("rps");
}
