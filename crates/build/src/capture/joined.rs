//! The objects of a Rust crate, one for each of its codegen units, in one: so a function that has moved from one to
//! another is still the same.
//!
//! They are in the library that rustc made of the crate, or were given to the linker and removed ([`super::record`]).

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use livegraft_patchfile::{Input, join as link};
use object::read::archive::ArchiveFile;

use super::build::Built;
use super::error::Error;
use super::rustc::{crate_name, is_unit_of};
use super::site::Site;
use super::units::Unit;

/// Writes the object of a crate to its place among what is kept. What holds no machine code leaves nothing: bitcode that
/// is compiled when the program is linked.
pub(super) fn join(site: &Site, built: &Built, unit: &Unit) -> Result<(), Error> {
    let output = built.remade(unit);
    let _ = fs::remove_file(&output);
    let objects = match &unit.object {
        Some(library) => {
            let path = site.host(&built.tree, library);
            let name = crate_name(&built.record.calls[unit.call].arguments, unit.at);
            members(&path, name.as_bytes())?
        }
        None => temporaries(built, unit)?,
    };
    let inputs: Vec<Input<'_>> = objects
        .iter()
        .map(|(name, bytes)| Input {
            path: Path::new(OsStr::from_bytes(name)),
            bytes,
        })
        .collect();
    if inputs.is_empty() {
        return Ok(());
    }
    let joined = link(&inputs).map_err(|error| Error::Join {
        source_file: site.shown(&unit.source),
        message: error.to_string(),
    })?;
    fs::write(&output, joined).map_err(Error::io(&output))
}

type Object = (Vec<u8>, Vec<u8>);

fn is_elf(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF")
}

/// The objects of a crate in its library, or the one that it was compiled to.
fn members(path: &Path, crate_name: &[u8]) -> Result<Vec<Object>, Error> {
    let data = fs::read(path).map_err(Error::io(path))?;
    if is_elf(&data) {
        return Ok(Vec::from([(path.as_os_str().as_bytes().to_vec(), data)]));
    }
    let damaged = |error: object::Error| Error::io(path)(std::io::Error::other(error));
    let archive = ArchiveFile::parse(&*data).map_err(damaged)?;
    let mut objects = Vec::new();
    for member in archive.members() {
        let member = member.map_err(damaged)?;
        // A static library has all other crates too, and is named by its crate; so is none of an incremental build.
        let own = match path.extension() {
            Some(extension) if extension == "a" => is_unit_of(member.name(), crate_name),
            _ => member.name().ends_with(b".rcgu.o"),
        };
        if own {
            let bytes = member.data(&*data).map_err(damaged)?;
            if is_elf(bytes) {
                objects.push((member.name().to_vec(), bytes.to_vec()));
            }
        }
    }
    Ok(objects)
}

/// The objects that the last link of a call was given.
fn temporaries(built: &Built, unit: &Unit) -> Result<Vec<Object>, Error> {
    let mut links = built.record.links.iter().rev();
    let link = links.find(|link| link.success && link.driver == Some(unit.call));
    let names = link.map_or(&[][..], |link| &link.temporaries);
    let read = |name: &String| {
        let path = built.kept.join(name);
        let bytes = fs::read(&path).map_err(Error::io(&path))?;
        Ok((name.clone().into_bytes(), bytes))
    };
    names.iter().map(read).collect()
}
