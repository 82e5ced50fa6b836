//! Addresses to names: /proc/kallsyms, and the symbol tables of ELF files that processes have mapped.

use super::{
    record::Mapping,
    stage::{HOIST_MARK, KERNEL_MARK},
};
use object::{Object, ObjectSegment, ObjectSymbol, SymbolKind};
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
};

/// Where functions begin, and their names.
#[derive(Debug, Default)]
pub(super) struct Table(BTreeMap<u64, String>);

impl Table {
    /// Lines of kallsyms; only functions.
    pub(super) fn of_kernel(text: &str) -> Self {
        let function = |line: &str| {
            let mut words = line.split_ascii_whitespace();
            let (address, kind, name) = (words.next()?, words.next()?, words.next()?);
            let address = u64::from_str_radix(address, 16).ok().filter(|address| *address != 0)?;
            matches!(kind, "t" | "T" | "w" | "W").then(|| (address, name.to_owned()))
        };
        Self(text.lines().filter_map(function).collect())
    }

    /// Functions of an ELF file by their address in it.
    fn of_elf(bytes: &[u8]) -> Option<(Self, Vec<Segment>)> {
        let file = object::File::parse(bytes).ok()?;
        let named =
            file.symbols().chain(file.dynamic_symbols()).filter(|symbol| symbol.kind() == SymbolKind::Text);
        let symbols = named.filter_map(|symbol| Some((symbol.address(), symbol.name().ok()?.to_owned())));
        let table = symbols.filter(|(address, name)| *address != 0 && !name.is_empty()).collect();
        let segments = file.segments().map(|segment| {
            let (offset, size) = segment.file_range();
            Segment { offset, size, address: segment.address() }
        });
        Some((Self(table), segments.collect()))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The function at or before an address.
    pub(super) fn name(&self, address: u64) -> Option<&str> {
        self.0.range(..=address).next_back().map(|(_, name)| name.as_str())
    }
}

/// What of a file goes where.
#[derive(Debug)]
struct Segment {
    offset: u64,
    size: u64,
    address: u64,
}

struct Module {
    table: Table,
    segments: Vec<Segment>,
}

/// Names of everything that was sampled.
pub(super) struct Symbols {
    kernel: Table,
    modules: HashMap<String, Option<Module>>,
    maps: HashMap<u32, Vec<Mapping>>,
    /// Names already found.
    known: HashMap<(u32, u64), String>,
}

impl Symbols {
    pub(super) fn new() -> Self {
        let kernel = fs::read_to_string("/proc/kallsyms").unwrap_or_default();
        let kernel = Table::of_kernel(&kernel);
        Self { kernel, modules: HashMap::new(), maps: HashMap::new(), known: HashMap::new() }
    }

    /// Programs loaded into the kernel since (BPF) have names, too.
    pub(super) fn refresh_kernel(&mut self) {
        let new = Table::of_kernel(&fs::read_to_string("/proc/kallsyms").unwrap_or_default());
        self.kernel.0.extend(new.0); // what is gone was there when it was sampled
    }

    pub(super) fn sees_kernel(&self) -> bool {
        !self.kernel.is_empty()
    }

    /// The process is another program.
    pub(super) fn forget(&mut self, pid: u32) {
        self.maps.insert(pid, Vec::new());
        self.known.retain(|(known, _), _| *known != pid);
    }

    pub(super) fn map(&mut self, mapping: Mapping) {
        self.learn(mapping.pid);
        self.maps.entry(mapping.pid).or_default().push(mapping);
    }

    /// Looks at what a process has mapped, once, while it lives.
    pub(super) fn learn(&mut self, pid: u32) {
        self.maps.entry(pid).or_insert_with(|| {
            maps_of(pid, &fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default())
        });
    }

    pub(super) fn kernel(&self, address: u64) -> String {
        format!("{}{KERNEL_MARK}", self.kernel.name(address).unwrap_or("[kernel]"))
    }

    pub(super) fn user(&mut self, pid: u32, address: u64) -> String {
        if let Some(name) = self.known.get(&(pid, address)) {
            return name.clone();
        }
        let name = self.find(pid, address);
        self.known.insert((pid, address), name.clone());
        name
    }

    fn find(&mut self, pid: u32, address: u64) -> String {
        self.learn(pid);
        // the newest mapping of an address is the one in force
        let mapping = self.maps[&pid].iter().rev().find(|m| (m.start..m.end).contains(&address)).cloned();
        let Some(mapping) = mapping else { return "[unknown]".into() };
        let file = Path::new(&mapping.file)
            .file_name()
            .map_or_else(|| mapping.file.clone(), |f| f.to_string_lossy().into_owned());
        let module = self.modules.entry(mapping.file.clone()).or_insert_with(|| {
            let bytes = fs::read(format!("/proc/{pid}/root{}", mapping.file))
                .or_else(|_| fs::read(&mapping.file))
                .ok()?;
            Table::of_elf(&bytes).map(|(table, segments)| Module { table, segments })
        });
        let at = address - mapping.start + mapping.offset;
        let name = module.as_ref().and_then(|module| {
            let segment = module.segments.iter().find(|s| (s.offset..s.offset + s.size).contains(&at))?;
            module.table.name(at - segment.offset + segment.address)
        });
        let name =
            name.map_or_else(|| format!("[{file}]"), |name| format!("{:#}", rustc_demangle::demangle(name)));
        let name = name.replace(';', ":");
        if file.starts_with("libhoist") { format!("{HOIST_MARK}{name}") } else { name }
    }
}

/// Lines of /proc/PID/maps that can be executed and have a file.
fn maps_of(pid: u32, text: &str) -> Vec<Mapping> {
    let mapping = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (range, access, offset) = (words.next()?, words.next()?, words.next()?);
        let file = words.nth(2).filter(|file| file.starts_with('/') && access.contains('x'))?;
        let (start, end) = range.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        Some(Mapping {
            pid,
            start: number(start)?,
            end: number(end)?,
            offset: number(offset)?,
            file: file.into(),
        })
    };
    text.lines().filter_map(mapping).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_the_name_of_the_function_before_it() {
        let table = Table::of_kernel(
            "ffff01 T ip_rcv\nffff20 t tcp_ack\nffff10 D data\nffff30 t nf_hook\t[nf]\nnonsense\n0 T hidden\n",
        );
        assert_eq!(table.name(0xffff01), Some("ip_rcv"));
        assert_eq!(table.name(0xffff1f), Some("ip_rcv"));
        assert_eq!(table.name(0xffff3f), Some("nf_hook"));
        assert_eq!(table.name(1), None);
        assert!(Table::of_kernel("0000000000000000 T _text\n").is_empty(), "kptr_restrict");
    }

    #[test]
    fn code_that_is_mapped_from_files_is_found() {
        let text = "5581-5590 r-xp 00001000 08:01 77  /usr/bin/knotd\n7f00-7f01 rw-p 0 00:00 0\n7ffd-7ffe r-xp 0 00:00 0 [vdso]\n";
        let maps = maps_of(9, text);
        assert_eq!(
            maps,
            [Mapping { pid: 9, start: 0x5581, end: 0x5590, offset: 0x1000, file: "/usr/bin/knotd".into() }]
        );
    }

    #[test]
    fn a_function_of_this_program_is_found_by_its_address() {
        let mut symbols = Symbols::new();
        let address = an_address_has_the_name_of_the_function_before_it as fn() as usize as u64;
        let name = symbols.user(std::process::id(), address + 1);
        assert!(name.contains("an_address_has_the_name"), "{name}");
        assert_eq!(symbols.user(std::process::id(), 1), "[unknown]");
    }
}
