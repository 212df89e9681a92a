//! QEMU's machine protocol: lines of JSON, commands one way, answers and events the other.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

use anyhow::{Context, bail};
use minivmm_tests::LIMIT;
use serde_json::{Value, json};

/// A connection on which commands can be given.
pub struct Qmp {
    lines: BufReader<UnixStream>,
    /// The last migration state that an event told.
    migration: Option<String>,
}

impl Qmp {
    /// Takes the greeting.
    ///
    /// # Errors
    /// There is none.
    pub fn new(stream: UnixStream) -> anyhow::Result<Self> {
        stream.set_read_timeout(Some(LIMIT))?;
        let mut qmp = Self {
            lines: BufReader::new(stream),
            migration: None,
        };
        qmp.message()?;
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Gives a command and waits for its answer.
    ///
    /// # Errors
    /// It is refused.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> anyhow::Result<()> {
        let line = json!({ "execute": command, "arguments": arguments });
        self.lines
            .get_mut()
            .write_all(format!("{line}\n").as_bytes())?;
        loop {
            let message = self.message()?;
            if message.get("return").is_some() {
                return Ok(());
            }
            if let Some(error) = message.get("error") {
                bail!("{command}: {error}");
            }
        }
    }

    /// Waits until the state is in its file, or has been read from it.
    ///
    /// # Errors
    /// The migration failed.
    pub fn until_migrated(&mut self) -> anyhow::Result<()> {
        loop {
            match self.migration.take().as_deref() {
                Some("completed") => return Ok(()),
                Some(state @ ("failed" | "cancelled")) => bail!("The migration has {state}"),
                _ => drop(self.message()?),
            }
        }
    }

    fn message(&mut self) -> anyhow::Result<Value> {
        let mut line = String::new();
        self.lines.read_line(&mut line).context("QMP")?;
        let message: Value = serde_json::from_str(&line).context("QMP")?;
        if message["event"] == "MIGRATION" {
            self.migration = message["data"]["status"].as_str().map(str::to_owned);
        }
        Ok(message)
    }
}
