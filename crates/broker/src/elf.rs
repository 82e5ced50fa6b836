//! Whether the shim can get into a program: found in PATH, followed through `#!`, looked at as ELF.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read},
    os::unix::{ffi::OsStrExt, fs::FileExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

/// Interpreters that a script may name before the kernel gives up (bprm, four levels).
const DEPTH: usize = 4;
/// Program headers that are looked at.
const HEADERS: u16 = 64;

/// Why a program runs without the shim.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Unshimmed {
    /// No dynamic loader.
    Static,
    /// A loader other than glibc's.
    Loader(String),
    /// Not for this machine's instruction set or word size.
    Foreign,
    /// Set-uid, set-gid or with file capabilities: the loader ignores LD_PRELOAD.
    Privileged,
    /// A Go program makes system calls past libc.
    Go,
}

impl std::fmt::Display for Unshimmed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Static => write!(f, "it is statically linked"),
            Self::Loader(loader) => write!(f, "its loader is {loader}, not glibc's"),
            Self::Foreign => write!(f, "it is for another instruction set"),
            Self::Privileged => write!(f, "it is set-uid, set-gid or has file capabilities"),
            Self::Go => write!(f, "it is a Go program, which does not call libc"),
        }
    }
}

/// Finds a command as execvp(3) does.
///
/// # Errors
/// `NotFound`, or `PermissionDenied` if what was found may not be executed: env(1) exits with 127 and 126.
pub fn find(command: &OsStr, path: Option<&OsStr>) -> io::Result<PathBuf> {
    if command.as_bytes().contains(&b'/') {
        return executable(PathBuf::from(command));
    }
    let default = OsString::from("/usr/local/bin:/usr/bin:/bin");
    let mut result = Err(io::ErrorKind::NotFound.into());
    for directory in std::env::split_paths(path.unwrap_or(&default)) {
        match executable(directory.join(command)) {
            Ok(found) => return Ok(found),
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => result = Err(e),
            Err(_) => {}
        }
    }
    result
}

fn executable(path: PathBuf) -> io::Result<PathBuf> {
    let meta = path.metadata()?;
    if meta.is_dir() || meta.mode() & 0o111 == 0 {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(path)
}

/// Why the shim cannot get into `program`; None if it can.
///
/// # Errors
/// The file cannot be read.
pub fn examine(program: &Path) -> io::Result<Option<Unshimmed>> {
    let mut program = program.to_owned();
    for _ in 0..=DEPTH {
        let file = File::open(&program)?;
        if privileged(&program, &file)? {
            return Ok(Some(Unshimmed::Privileged));
        }
        let mut head = Vec::new();
        (&file).take(256).read_to_end(&mut head)?;
        match interpreter(&head) {
            Some(next) => program = next,
            // Not ELF: execvp(3) hands it to /bin/sh.
            None if !head.starts_with(b"\x7fELF") => program = "/bin/sh".into(),
            None => return classify(&file, &head),
        }
    }
    Ok(None)
}

fn privileged(path: &Path, file: &File) -> io::Result<bool> {
    let meta = file.metadata()?;
    // Root starting a set-uid-root program gains nothing: the loader stays in its ordinary mode.
    let root = nix::unistd::getuid().is_root();
    let setuid = meta.mode() & 0o4000 != 0 && !(root && meta.uid() == 0);
    let setgid = meta.mode() & 0o2000 != 0 && meta.gid() != nix::unistd::getgid().as_raw();
    Ok(setuid || setgid || (!root && crate::sys::has_capabilities(path)))
}

/// What `#!` names.
fn interpreter(head: &[u8]) -> Option<PathBuf> {
    let line = head.strip_prefix(b"#!")?.split(|&b| b == b'\n').next()?;
    let word = line.split(|b| b" \t".contains(b)).find(|word| !word.is_empty())?;
    Some(PathBuf::from(OsStr::from_bytes(word)))
}

fn classify(file: &File, head: &[u8]) -> io::Result<Option<Unshimmed>> {
    const ELFCLASS64: u8 = 2;
    const PT_INTERP: u32 = 3;
    const PT_NOTE: u32 = 4;
    let machine: u16 = if cfg!(target_arch = "x86_64") { 62 } else { 183 };
    if head.len() < 64 || head[4] != ELFCLASS64 || u16_at(head, 18) != machine {
        return Ok(Some(Unshimmed::Foreign));
    }
    let (table, size, count) = (u64_at(head, 32), u16_at(head, 54), u16_at(head, 56).min(HEADERS));
    let mut loader = None;
    for i in 0..u64::from(count) {
        let mut header = [0; 56];
        if size < 56 || file.read_exact_at(&mut header, table.saturating_add(i * u64::from(size))).is_err() {
            break;
        }
        let contents = || segment(file, u64_at(&header, 8), u64_at(&header, 32));
        match u32_at(&header, 0) {
            PT_INTERP => loader = Some(contents()),
            PT_NOTE if go_note(&contents()) => return Ok(Some(Unshimmed::Go)),
            _ => {}
        }
    }
    Ok(match loader {
        None => Some(Unshimmed::Static),
        Some(name) => foreign_loader(&name),
    })
}

fn foreign_loader(name: &[u8]) -> Option<Unshimmed> {
    let name = String::from_utf8_lossy(name).trim_end_matches('\0').to_owned();
    let glibc = Path::new(&name).file_name().is_some_and(|f| f.as_bytes().starts_with(b"ld-linux"));
    (!glibc).then_some(Unshimmed::Loader(name))
}

/// Go's linker leaves a note of its own (owner "Go", type 4: build id).
fn go_note(note: &[u8]) -> bool {
    note.windows(4).take(256).step_by(4).any(|word| word == b"Go\0\0")
}

fn segment(file: &File, offset: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; len.min(4096) as usize];
    match file.read_at(&mut bytes, offset) {
        Ok(n) => bytes.truncate(n),
        Err(_) => bytes.clear(),
    }
    bytes
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt};

    fn file(name: &str, contents: &[u8], mode: u32) -> PathBuf {
        let directory = std::env::temp_dir().join(format!("hoist-elf-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join(name);
        fs::write(&path, contents).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn elf(class: u8, segments: &[(u32, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0_u8; 64 + 56 * segments.len()];
        bytes[..5].copy_from_slice(&[0x7f, b'E', b'L', b'F', class]);
        bytes[18] = if cfg!(target_arch = "x86_64") { 62 } else { 183 };
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = segments.len() as u8;
        for (i, (kind, contents)) in segments.iter().enumerate() {
            let (at, offset) = (64 + 56 * i, bytes.len());
            bytes[at..at + 4].copy_from_slice(&kind.to_le_bytes());
            bytes[at + 8..at + 16].copy_from_slice(&(offset as u64).to_le_bytes());
            bytes[at + 32..at + 40].copy_from_slice(&(contents.len() as u64).to_le_bytes());
            bytes.extend_from_slice(contents);
        }
        bytes
    }

    const GLIBC: &[u8] = b"/lib64/ld-linux-x86-64.so.2\0";

    #[test]
    fn programs_are_told_apart_by_their_loader() {
        let verdict = |name, contents: &[u8]| examine(&file(name, contents, 0o755)).unwrap();
        assert_eq!(verdict("glibc", &elf(2, &[(3, GLIBC)])), None);
        assert_eq!(verdict("static", &elf(2, &[(1, b"code")])), Some(Unshimmed::Static));
        let musl = "/lib/ld-musl-x86_64.so.1";
        let expected = Some(Unshimmed::Loader(musl.into()));
        assert_eq!(verdict("musl", &elf(2, &[(3, format!("{musl}\0").as_bytes())])), expected);
        assert_eq!(verdict("small", &elf(1, &[(3, GLIBC)])), Some(Unshimmed::Foreign));
        let note = [&[4, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0][..], b"Go\0\0", b"abcd"].concat();
        assert_eq!(verdict("go", &elf(2, &[(4, &note), (3, GLIBC)])), Some(Unshimmed::Go));
    }

    #[test]
    fn a_script_is_as_good_as_its_interpreter() {
        let program = file("interpreted-static", &elf(2, &[]), 0o755);
        let script = file("script", format!("#! {} -x\n", program.display()).as_bytes(), 0o755);
        let outer = file("outer", format!("#!{}\n", script.display()).as_bytes(), 0o755);
        assert_eq!(examine(&outer).unwrap(), Some(Unshimmed::Static));
    }

    #[test]
    fn a_set_uid_program_of_another_user_is_privileged() {
        let path = file("setuid", &elf(2, &[(3, GLIBC)]), 0o4755);
        if nix::unistd::getuid().is_root() {
            assert_eq!(examine(&path).unwrap(), None, "root gains nothing from root");
            std::os::unix::fs::chown(&path, Some(65_534), None).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o4755)).unwrap();
        }
        assert_eq!(examine(&path).unwrap(), Some(Unshimmed::Privileged));
    }

    #[test]
    fn truncated_and_lying_headers_never_panic() {
        let whole = elf(2, &[(3, GLIBC), (4, b"note")]);
        for len in 4..whole.len() {
            let _ = examine(&file("cut", &whole[..len], 0o755));
        }
        for at in 5..64 {
            let mut lying = whole.clone();
            lying[at] = 0xff;
            let _ = examine(&file("lying", &lying, 0o755));
        }
    }

    #[test]
    fn commands_are_found_in_path_and_unexecutable_ones_are_told_from_missing_ones() {
        let plain = file("plain", b"text", 0o644);
        let directory = plain.parent().unwrap().as_os_str();
        let kind = |command: &str| find(OsStr::new(command), Some(directory)).unwrap_err().kind();
        assert_eq!(kind("plain"), io::ErrorKind::PermissionDenied);
        assert_eq!(kind("absent-command"), io::ErrorKind::NotFound);
        let good = file("good", b"text", 0o755);
        assert_eq!(find(OsStr::new("good"), Some(directory)).unwrap(), good);
    }
}
