//! `stream-sink ADDRESS:PORT CONNECTIONS STYLE [SO_RCVBUF]`: reads streams and compares them; see `hoist_tests::sink`.

use hoist_tests::sink::{Style, serve};

fn main() {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let at = args[0].parse().expect("ADDRESS:PORT");
    let connections = args[1].parse().expect("CONNECTIONS");
    let style = Style::of(&args[2]).expect("STYLE");
    let buffer = args.get(3).map_or(0, |word| word.parse().expect("SO_RCVBUF"));
    serve(at, connections, style, buffer);
}
