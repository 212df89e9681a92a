//! How the image that the guest's root file system was made from wants its programs to be run.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use crate::error::Error;
use crate::machine;

/// `guest build` writes it: records `KEY=VALUE` that each end with a NUL.
const BUILT: &str = "/etc/minivmm/image";
/// Where it is for as long as the guest runs, whatever the root is.
const KEPT: &str = "/run/minivmm/image";

/// What a command gets that is not told otherwise.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// The image's own command.
    pub argv: Vec<String>,
    /// `NAME=VALUE`.
    pub env: Vec<String>,
    /// Working directory; empty when it does not say.
    pub cwd: String,
    /// Name or number, and after a colon the group's; empty when it does not say.
    pub user: String,
}

/// Has the description outlive the initramfs.
pub fn keep_for_later() -> Result<(), Error> {
    let built = match fs::read(BUILT) {
        Ok(built) => built,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::file("read", BUILT)(error)),
    };
    machine::make_run_directory()?;
    fs::write(KEPT, built).map_err(Error::file("write", KEPT))
}

impl Image {
    /// That of this guest; an empty one when it was made from no image.
    pub fn load() -> Self {
        let read = |path: &str| fs::read_to_string(Path::new(path)).ok();
        let text = read(KEPT).or_else(|| read(BUILT));
        text.map(|text| Self::parse(&text)).unwrap_or_default()
    }

    fn parse(text: &str) -> Self {
        let mut image = Self::default();
        for record in text.split_terminator('\0') {
            // A newer `guest build` may know of more.
            match record.split_once('=') {
                Some(("arg", value)) => image.argv.push(value.to_owned()),
                Some(("env", value)) => image.env.push(value.to_owned()),
                Some(("cwd", value)) => value.clone_into(&mut image.cwd),
                Some(("user", value)) => value.clone_into(&mut image.user),
                _ => {}
            }
        }
        image
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_taken_and_others_left() {
        let image = Image::parse("arg=/bin/a\0arg=b=c\n\0env=X=1=2\0cwd=/srv\0new=1\0user=a:b\0");
        let expected = Image {
            argv: vec!["/bin/a".into(), "b=c\n".into()],
            env: vec!["X=1=2".into()],
            cwd: "/srv".into(),
            user: "a:b".into(),
        };
        assert_eq!(image, expected);
        assert_eq!(Image::parse(""), Image::default());
    }
}
