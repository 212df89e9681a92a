//! What is to be run: a request with every name in it resolved.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use proto::guest::ExecRequest;
use rustix::process::geteuid;
use rustix::termios::Winsize;
use ttrpc::Code;

use crate::error::Refusal;
use crate::exec::image::Image;
use crate::exec::user::User;
use crate::tool;

/// Where programs are, for those that are told nothing else.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The agent, also when its file has been replaced.
const OWN_PROGRAM: &str = "/proc/self/exe";
/// The user of a command for which nobody names another: with the home directory that it has.
const ROOT: &str = "0";
const DEFAULT_TERM: &str = "xterm";

/// A command that can be started.
#[derive(Debug)]
pub struct Plan {
    /// The file to execute.
    pub program: PathBuf,
    /// Its arguments, starting with its name as it was given.
    pub argv: Vec<String>,
    /// What to add to the agent's own environment.
    pub env: Vec<(OsString, OsString)>,
    /// Where to run it.
    pub cwd: PathBuf,
    /// As whom; `None` for the agent's own user.
    pub user: Option<User>,
    /// The size of its terminal, if it gets one.
    pub terminal: Option<Winsize>,
    /// Whether the host brings input.
    pub stdin: bool,
    /// Where its output goes when the host takes none.
    pub detached: Option<Log>,
}

/// What a detached command prints goes into this file, if there is one.
pub type Log = Option<PathBuf>;

impl Plan {
    /// Checks the request against the guest. What it leaves open is as the image says.
    pub fn new(mut request: ExecRequest, image: &Image) -> Result<Self, Refusal> {
        if !request.tool {
            complete(&mut request, image);
        }
        let name = request.argv.first().filter(|name| !name.is_empty());
        let name = name
            .ok_or_else(|| Refusal::invalid("No command given, and the guest's image has none"))?
            .clone();
        if let Some(text) = request
            .argv
            .iter()
            .chain([&request.cwd, &request.log])
            .find(|s| s.contains('\0'))
        {
            return Err(Refusal::invalid(format!(
                "{text:?} contains a NUL character"
            )));
        }
        let detached = detached(&request)?;
        let user = match request.user.as_str() {
            "" => None,
            wanted => Some(User::find(wanted)?),
        };
        let cwd = working_directory(&request.cwd)?;
        let env = environment(&request, user.as_ref())?;
        let (program, argv) = if request.tool {
            let words = [tool::AGENT, tool::TOOL].map(str::to_owned);
            (
                OWN_PROGRAM.into(),
                words.into_iter().chain(request.argv).collect(),
            )
        } else {
            (find_program(&name, &cwd, &env)?, request.argv)
        };
        Ok(Self {
            program,
            argv,
            env,
            cwd,
            user,
            terminal: request.tty.then(|| window(request.rows, request.cols)),
            stdin: request.stdin,
            detached,
        })
    }
}

fn complete(request: &mut ExecRequest, image: &Image) {
    if request.argv.is_empty() {
        request.argv.clone_from(&image.argv);
    }
    if request.cwd.is_empty() {
        request.cwd.clone_from(&image.cwd);
    }
    if request.user.is_empty() {
        request.user.clone_from(&image.user);
    }
    if request.user.is_empty() && geteuid().is_root() {
        ROOT.clone_into(&mut request.user);
    }
    let given = std::mem::take(&mut request.env);
    request.env = image.env.iter().cloned().chain(given).collect();
}

fn detached(request: &ExecRequest) -> Result<Option<Log>, Refusal> {
    let wrong = match (request.detach, request.log.as_str()) {
        (false, "") => return Ok(None),
        (false, _) => "Only a detached command has a log",
        (true, _) if request.tty || request.stdin => {
            "A detached command has no terminal and no input"
        }
        (true, "") => return Ok(Some(None)),
        (true, log) if log.starts_with('/') => return Ok(Some(Some(log.into()))),
        (true, _) => "The log's path does not begin with /",
    };
    Err(Refusal::invalid(wrong))
}

/// The size of a terminal as the kernel takes it.
pub fn window(rows: u32, cols: u32) -> Winsize {
    let cell_count = |count: u32| u16::try_from(count).unwrap_or(u16::MAX);
    Winsize {
        ws_row: cell_count(rows),
        ws_col: cell_count(cols),
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

fn working_directory(cwd: &str) -> Result<PathBuf, Refusal> {
    let cwd = Path::new("/").join(cwd);
    match fs::metadata(&cwd) {
        Ok(metadata) if metadata.is_dir() => Ok(cwd),
        Ok(_) => Err(Refusal::invalid(format!(
            "{} is not a directory",
            cwd.display()
        ))),
        Err(error) => Err(Refusal::invalid(format!(
            "Cannot use directory {}: {error}",
            cwd.display()
        ))),
    }
}

fn environment(
    request: &ExecRequest,
    user: Option<&User>,
) -> Result<Vec<(OsString, OsString)>, Refusal> {
    let mut env = Vec::new();
    if std::env::var_os("PATH").is_none() {
        env.push(("PATH".into(), DEFAULT_PATH.into()));
    }
    if let Some(home) = user.and_then(|user| user.home.as_ref()) {
        env.push(("HOME".into(), home.into()));
    }
    if request.tty {
        env.push(("TERM".into(), DEFAULT_TERM.into()));
    }
    for variable in &request.env {
        let (name, value) = variable
            .split_once('=')
            .filter(|(name, value)| {
                !name.is_empty() && !name.contains('\0') && !value.contains('\0')
            })
            .ok_or_else(|| {
                Refusal::invalid(format!("Environment {variable:?}: expected NAME=value"))
            })?;
        env.push((name.into(), value.into()));
    }
    Ok(env)
}

fn find_program(name: &str, cwd: &Path, env: &[(OsString, OsString)]) -> Result<PathBuf, Refusal> {
    if name.contains('/') {
        let path = cwd.join(name);
        return check_executable(&path).map(|()| path);
    }
    let given = env
        .iter()
        .rev()
        .find(|(name, _)| name == "PATH")
        .map(|(_, value)| value.clone());
    let path = given
        .or_else(|| std::env::var_os("PATH"))
        .unwrap_or_else(|| DEFAULT_PATH.into());
    let mut first_refusal = None;
    for directory in std::env::split_paths(&path) {
        let candidate = cwd.join(directory).join(name);
        match check_executable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(refusal) if refusal.code == Code::PERMISSION_DENIED => {
                first_refusal.get_or_insert(refusal);
            }
            Err(_) => {}
        }
    }
    Err(first_refusal.unwrap_or_else(|| {
        let text = format!("{name}: command not found in PATH={}", path.display());
        Refusal::new(Code::NOT_FOUND, text)
    }))
}

fn check_executable(path: &Path) -> Result<(), Refusal> {
    let refuse = |code, why: &str| Err(Refusal::new(code, format!("{}: {why}", path.display())));
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => refuse(Code::PERMISSION_DENIED, "is a directory"),
        Ok(metadata) if metadata.permissions().mode() & 0o111 == 0 => {
            refuse(Code::PERMISSION_DENIED, "is not executable")
        }
        Ok(_) => Ok(()),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            refuse(Code::NOT_FOUND, "no such file")
        }
        Err(error) => refuse(Code::PERMISSION_DENIED, &error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(argv: &[&str], change: impl FnOnce(&mut ExecRequest)) -> Result<Plan, Refusal> {
        let mut request = ExecRequest::new();
        request.argv = argv.iter().map(|&arg| arg.to_owned()).collect();
        change(&mut request);
        Plan::new(request, &Image::default())
    }

    fn refusal(argv: &[&str], change: impl FnOnce(&mut ExecRequest)) -> (Code, String) {
        let refusal = plan(argv, change).unwrap_err();
        (refusal.code, refusal.message)
    }

    #[test]
    fn command_is_found_in_the_path_of_the_request() {
        let plan = plan(&["sh", "-c", "true"], |r| {
            r.env = vec!["PATH=/nowhere:/bin".to_owned()];
        });
        assert_eq!(plan.unwrap().program, Path::new("/bin/sh"));
    }

    #[test]
    fn what_is_left_open_is_as_the_image_says() {
        let image = Image {
            argv: vec!["sh".into(), "-c".into()],
            env: vec!["PATH=/bin".into(), "A=image".into()],
            cwd: "/etc".into(),
            user: "0:0".into(),
        };
        let own = Plan::new(ExecRequest::new(), &image).unwrap();
        assert_eq!(own.argv, ["sh", "-c"]);
        assert_eq!(own.program, Path::new("/bin/sh"));
        assert_eq!(own.cwd, Path::new("/etc"));
        assert!(own.user.is_some());

        let mut request = ExecRequest::new();
        request.argv = vec!["true".into()];
        request.cwd = "/".into();
        request.env = vec!["A=request".into()];
        let other = Plan::new(request.clone(), &image).unwrap();
        assert_eq!((other.argv.len(), other.cwd.as_path()), (1, Path::new("/")));
        let last = other.env.iter().rfind(|(name, _)| name == "A").unwrap();
        assert_eq!(last.1, "request");

        request.tool = true;
        request.cwd.clear();
        let tool = Plan::new(request, &image).unwrap();
        assert_eq!(tool.cwd, Path::new("/"));
        assert!(tool.user.is_none());
    }

    #[test]
    fn missing_command_is_not_found_and_the_path_is_named() {
        let (code, message) = refusal(&["no-such"], |r| r.env = vec!["PATH=/a:/b".into()]);
        assert_eq!(code, Code::NOT_FOUND);
        assert_eq!(message, "no-such: command not found in PATH=/a:/b");
        assert_eq!(refusal(&["/no/such"], |_| ()).0, Code::NOT_FOUND);
    }

    #[test]
    fn what_cannot_be_executed_is_denied() {
        for name in ["/etc/passwd", "/etc"] {
            assert_eq!(
                refusal(&[name], |_| ()).0,
                Code::PERMISSION_DENIED,
                "{name}"
            );
        }
    }

    #[test]
    fn relative_command_is_relative_to_its_directory() {
        let plan = plan(&["./sh"], |r| r.cwd = "/bin".into()).unwrap();
        assert_eq!(plan.program, Path::new("/bin/./sh"));
    }

    #[test]
    fn wrong_requests_are_named() {
        let invalid = |argv: &[&str], change: fn(&mut ExecRequest), named: &str| {
            let (code, message) = refusal(argv, change);
            assert_eq!(code, Code::INVALID_ARGUMENT);
            assert!(message.contains(named), "{message}");
        };
        invalid(&[], |_| (), "No command");
        invalid(&[""], |_| (), "No command");
        invalid(&["sh", "a\0b"], |_| (), "NUL");
        invalid(&["sh"], |r| r.cwd = "/no/such".into(), "/no/such");
        invalid(&["sh"], |r| r.cwd = "/etc/passwd".into(), "not a directory");
        invalid(&["sh"], |r| r.env.push("FOO".into()), "\"FOO\"");
        invalid(&["sh"], |r| r.env.push("=x".into()), "\"=x\"");
        invalid(&["sh"], |r| r.user = "no-such-user".into(), "no-such-user");
        invalid(&["sh"], |r| r.log = "/tmp/log".into(), "Only a detached");
        let detached_with = |r: &mut ExecRequest| r.detach = true;
        assert!(plan(&["sh"], detached_with).unwrap().detached.is_some());
        invalid(&["sh"], |r| (r.detach, r.tty) = (true, true), "no terminal");
        invalid(
            &["sh"],
            |r| (r.detach, r.log) = (true, "log".into()),
            "begin with /",
        );
    }
}
