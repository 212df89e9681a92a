//! The little that has to be known of ELF files.

use object::elf::{EM_X86_64, FileHeader64, PT_INTERP};
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};
use object::{Endianness, ReadRef};

type Header = FileHeader64<Endianness>;

/// Where e_shoff and, from e_shentsize on, the other section fields lie in the file header.
const SECTION_OFFSET_FIELD: std::ops::Range<usize> = 40..48;
const SECTION_COUNT_FIELDS: std::ops::Range<usize> = 58..64;

/// Accepts 64-bit ELF for x86_64; what it is otherwise.
pub fn check_x86_64(data: &[u8]) -> Result<(), String> {
    let header = Header::parse(data).map_err(|_| "not a 64-bit ELF file".to_owned())?;
    let endian = header.endian().map_err(|error| error.to_string())?;
    match header.e_machine(endian) {
        EM_X86_64 => Ok(()),
        machine => Err(format!("an ELF file for machine {machine}")),
    }
}

/// Accepts a program that needs no other file to run; what is wrong otherwise.
pub fn check_static_program(data: &[u8]) -> Result<(), String> {
    check_x86_64(data).map_err(|found| format!("is {found}, expected an x86_64 program"))?;
    let dynamic = parse(data)
        .and_then(|(header, endian)| {
            let segments = header.program_headers(endian, data)?;
            Ok(segments
                .iter()
                .any(|segment| segment.p_type(endian) == PT_INTERP))
        })
        .map_err(|error| format!("is a damaged ELF file: {error}"))?;
    if dynamic {
        return Err("needs a dynamic loader, expected a statically linked program".to_owned());
    }
    Ok(())
}

/// The `key=value` strings that a module says about itself.
pub fn module_info(data: &[u8]) -> Result<Vec<(String, String)>, String> {
    check_x86_64(data).map_err(|found| format!("is {found}, expected an x86_64 module"))?;
    let section = parse(data)
        .and_then(|(header, endian)| {
            let sections = header.sections(endian, data)?;
            let section = sections.section_by_name(endian, b".modinfo");
            section
                .map(|(_, section)| section.data(endian, data))
                .transpose()
        })
        .map_err(|error| format!("is damaged: {error}"))?
        .ok_or_else(|| "has no .modinfo section, expected a kernel module".to_owned())?;
    let strings = section
        .split(|byte| *byte == 0)
        .map(String::from_utf8_lossy);
    Ok(strings
        .filter_map(|text| {
            let (key, value) = text.split_once('=')?;
            Some((key.to_owned(), value.to_owned()))
        })
        .collect())
}

/// The program without what only debuggers read: everything behind the last loaded byte.
pub fn strip(data: &[u8]) -> Vec<u8> {
    let loaded_end = parse(data).and_then(|(header, endian)| {
        let segments = header.program_headers(endian, data)?;
        let ends = segments.iter().map(|segment| {
            let (offset, size) = segment.file_range(endian);
            offset.saturating_add(size)
        });
        Ok(ends.max().unwrap_or(u64::MAX))
    });
    let end = loaded_end
        .ok()
        .and_then(|end| usize::try_from(end).ok())
        .unwrap_or(usize::MAX);
    let mut program = data.get(..end).unwrap_or(data).to_vec();
    if program.len() < data.len() {
        // The section table is gone, so the header must not point to it.
        for field in [SECTION_OFFSET_FIELD, SECTION_COUNT_FIELDS] {
            program.get_mut(field).unwrap_or_default().fill(0);
        }
    }
    program
}

fn parse<'data, R: ReadRef<'data>>(data: R) -> object::Result<(&'data Header, Endianness)> {
    let header = Header::parse(data)?;
    Ok((header, header.endian()?))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const HEADER_BYTES: usize = 64;

    /// An ELF header without anything behind it.
    pub(crate) fn tiny_elf(machine: u16) -> Vec<u8> {
        let mut header = vec![0; HEADER_BYTES];
        header[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
        header[16..18].copy_from_slice(&2_u16.to_le_bytes());
        header[18..20].copy_from_slice(&machine.to_le_bytes());
        header[20..24].copy_from_slice(&1_u32.to_le_bytes());
        header[52..54].copy_from_slice(&64_u16.to_le_bytes());
        header
    }

    /// A module that says `info` about itself.
    pub(crate) fn module(info: &[&str]) -> Vec<u8> {
        let strings: Vec<u8> = info
            .iter()
            .flat_map(|text| [text.as_bytes(), b"\0"].concat())
            .collect();
        let names = b"\0.modinfo\0.shstrtab\0";
        let info_start = HEADER_BYTES;
        let names_start = info_start + strings.len();
        let table_start = names_start + names.len();

        let mut file = tiny_elf(62);
        file[16..18].copy_from_slice(&1_u16.to_le_bytes());
        file[40..48].copy_from_slice(&(table_start as u64).to_le_bytes());
        file[58..60].copy_from_slice(&64_u16.to_le_bytes());
        file[60..62].copy_from_slice(&3_u16.to_le_bytes());
        file[62..64].copy_from_slice(&2_u16.to_le_bytes());
        file.extend(&strings);
        file.extend(names);
        file.extend([0; 64]);
        for (name, kind, start, size) in [
            (1_u32, 1_u32, info_start, strings.len()),
            (10, 3, names_start, names.len()),
        ] {
            let mut section = [0; 64];
            section[..4].copy_from_slice(&name.to_le_bytes());
            section[4..8].copy_from_slice(&kind.to_le_bytes());
            section[24..32].copy_from_slice(&(start as u64).to_le_bytes());
            section[32..40].copy_from_slice(&(size as u64).to_le_bytes());
            file.extend(section);
        }
        file
    }

    #[test]
    fn module_info_is_read() {
        let file = module(&["license=GPL", "depends=a,b", "odd"]);
        let expected = [("license", "GPL"), ("depends", "a,b")];
        let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(module_info(&file).unwrap(), expected);
    }

    #[test]
    fn what_is_no_module_is_named() {
        assert!(
            module_info(b"text")
                .unwrap_err()
                .contains("not a 64-bit ELF file")
        );
        assert!(
            module_info(&tiny_elf(183))
                .unwrap_err()
                .contains("machine 183")
        );
        assert!(
            module_info(&tiny_elf(62))
                .unwrap_err()
                .contains("no .modinfo")
        );
        let file = module(&["a=b"]);
        assert!(module_info(&file[..file.len() - 100]).is_err());
    }

    #[test]
    fn stripped_program_still_runs() {
        // This test is a static program itself.
        let path = std::env::current_exe().unwrap();
        let program = std::fs::read(path).unwrap();
        check_static_program(&program).unwrap();
        let stripped = strip(&program);
        assert!(stripped.len() < program.len());

        let directory = tempfile::tempdir().unwrap();
        let copy = directory.path().join("copy");
        std::fs::write(&copy, stripped).unwrap();
        std::fs::set_permissions(&copy, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        let output = std::process::Command::new(copy)
            .arg("--list")
            .output()
            .unwrap();
        assert!(output.status.success());
        assert!(
            String::from_utf8(output.stdout)
                .unwrap()
                .contains("stripped_program_still_runs")
        );
    }
}
