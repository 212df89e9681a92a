//! `minivmm template verify`: compares every byte of templates with their checksums.

use clap::Args;
use serde::Serialize;
use snapshot::{TemplateName, VerifyReport};

use crate::args::Context;
use crate::background::Background;
use crate::error::{FAILURE, Outcome, SUCCESS};
use crate::output;
use anyhow::Context as _;

const EXAMPLES: &str = "\
EXAMPLES:
  Make sure that a template is as it was published; the exit code is 1 if it is not:
    minivmm template verify base";

/// Compare every byte of a template with its checksums.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct VerifyArgs {
    /// The template
    #[arg(value_name = "NAME")]
    name: TemplateName,
    /// Print what was found as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    name: String,
    whole: bool,
    chunks: usize,
    problems: Vec<Problem>,
}

#[derive(Debug, Serialize)]
struct Problem {
    file: String,
    offset: Option<u64>,
    reason: String,
}

impl VerifyArgs {
    /// Runs the command.
    pub fn run(self, context: &mut Context) -> Outcome {
        let report = self.verify(context)?;
        let whole = report.whole;
        if self.json {
            output::json(&report)?;
        } else if whole {
            let chunks = report.chunks;
            output::line(format!(
                "{}: whole, {chunks} chunks of memory compared",
                self.name
            ))?;
        } else {
            for problem in &report.problems {
                let at = problem.offset.map(|offset| format!(" at byte {offset}"));
                let at = at.unwrap_or_default();
                output::line(format!(
                    "{}: {}{at}: {}",
                    self.name, problem.file, problem.reason
                ))?;
            }
        }
        Ok(if whole { SUCCESS } else { FAILURE })
    }

    fn verify(&self, context: &mut Context) -> anyhow::Result<Report> {
        let store = context.open_store()?;
        let name = self.name.clone();
        let work = Background::start("verify", move || store.verify(&name))
            .context("Cannot start a thread")?;
        context.progress.step(format!("Verifying {}", self.name));
        let report = context.progress.wait_for(&work);
        Ok(describe(
            report.context("Cannot wait for the verification")??,
        ))
    }
}

fn describe(report: VerifyReport) -> Report {
    Report {
        name: report.name.to_string(),
        whole: report.is_whole(),
        chunks: report.chunks,
        problems: report
            .problems
            .into_iter()
            .map(|problem| Problem {
                file: problem.file.display().to_string(),
                offset: problem.offset,
                reason: problem.reason,
            })
            .collect(),
    }
}
