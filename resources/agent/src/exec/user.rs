//! Who a command runs as.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use rustix::fs::{Gid, Uid};

use crate::error::{Error, Refusal};

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// A user with its groups.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct User {
    /// User id.
    pub uid: Uid,
    /// Primary group.
    pub gid: Gid,
    /// Supplementary groups.
    pub groups: Vec<Gid>,
    /// Home directory, when the user is in /etc/passwd.
    pub home: Option<String>,
}

impl User {
    /// Looks up `name`, `uid` or either with `:group` in the guest's own files.
    pub fn find(wanted: &str) -> Result<Self, Refusal> {
        Self::find_in(wanted, &read_or_empty(PASSWD)?, &read_or_empty(GROUP)?)
    }

    fn find_in(wanted: &str, passwd: &str, group: &str) -> Result<Self, Refusal> {
        let (user, primary) = match wanted.split_once(':') {
            Some((user, primary)) => (user, Some(primary)),
            None => (wanted, None),
        };
        let entry = passwd
            .lines()
            .filter_map(Entry::parse)
            .find(|entry| entry.is(user));
        let uid = entry
            .as_ref()
            .map(|entry| entry.uid)
            .or_else(|| parse_id(user))
            .ok_or_else(|| Refusal::invalid(format!("No user {user:?} in the guest's {PASSWD}")))?;
        let gid = match primary {
            Some(primary) => find_group(primary, group)?,
            None => entry.as_ref().map_or(0, |entry| entry.gid),
        };
        // A group that is asked for is the only one.
        let member = entry.as_ref().filter(|_| primary.is_none());
        Ok(Self {
            uid: Uid::from_raw(uid),
            gid: Gid::from_raw(gid),
            groups: member.map_or_else(Vec::new, |entry| memberships(entry.name, group)),
            home: entry.map(|entry| entry.home.to_owned()),
        })
    }
}

/// A line of passwd(5).
struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> Entry<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1)?;
        Some(Self {
            name,
            uid,
            gid,
            home,
        })
    }

    fn is(&self, user: &str) -> bool {
        self.name == user || user.parse() == Ok(self.uid)
    }
}

/// Name, id and members of the lines of group(5).
fn groups(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or_default()))
    })
}

fn find_group(wanted: &str, group: &str) -> Result<u32, Refusal> {
    groups(group)
        .find(|(name, _, _)| *name == wanted)
        .map(|(_, gid, _)| gid)
        .or_else(|| parse_id(wanted))
        .ok_or_else(|| Refusal::invalid(format!("No group {wanted:?} in the guest's {GROUP}")))
}

/// The kernel takes the last number for "as it is".
fn parse_id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id != u32::MAX)
}

fn memberships(user: &str, group: &str) -> Vec<Gid> {
    groups(group)
        .filter(|(_, _, members)| members.split(',').any(|member| member == user))
        .map(|(_, gid, _)| Gid::from_raw(gid))
        .collect()
}

fn read_or_empty(path: &str) -> Result<String, Error> {
    match fs::read(Path::new(path)) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(Error::file("read", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nada:x:1000:1001:Ada,,,:/home/ada:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nada:x:1001:\naudio:x:29:bob,ada\nvideo:x:44:adam\n";

    fn find(wanted: &str) -> (u32, u32, Vec<u32>, Option<String>) {
        let user = User::find_in(wanted, PASSWD, GROUP).unwrap();
        let groups = user.groups.iter().map(|gid| gid.as_raw()).collect();
        (user.uid.as_raw(), user.gid.as_raw(), groups, user.home)
    }

    #[test]
    fn name_and_its_number_are_the_same_user() {
        let ada = (1000, 1001, vec![29], Some("/home/ada".to_owned()));
        assert_eq!(find("ada"), ada);
        assert_eq!(find("1000"), ada);
    }

    #[test]
    fn group_that_is_asked_for_is_the_only_one() {
        assert_eq!((find("ada:video").1, find("ada:video").2), (44, vec![]));
        assert_eq!(find("ada:7").1, 7);
    }

    #[test]
    fn unknown_number_is_a_user_without_groups() {
        assert_eq!(find("4242"), (4242, 0, vec![], None));
    }

    #[test]
    fn unknown_names_are_refused() {
        for (wanted, named) in [
            ("eve", "\"eve\""),
            ("ada:staff", "\"staff\""),
            ("", "\"\""),
            ("4294967295", "\"4294967295\""),
            ("-1", "\"-1\""),
        ] {
            let refusal = User::find_in(wanted, PASSWD, GROUP).unwrap_err();
            assert!(refusal.message.contains(named), "{}", refusal.message);
        }
    }
}
