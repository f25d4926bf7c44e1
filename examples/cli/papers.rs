//! `longburn papers`

use crate::{Globals, output};
use clap::Args;
use longburn::Result;
use longburn::testing::papers::{Paper, Status, foundations, papers};
use longburn::training::report::{Cell, Table};

/// List the papers and what there is of each
#[derive(Args)]
#[command(after_help = "\
Examples:
  longburn papers --implemented")]
pub struct PapersArgs {
    /// Only those that are implemented, with what they build on
    #[arg(long)]
    implemented: bool,
}

impl PapersArgs {
    pub fn run(&self, globals: &Globals) -> Result<()> {
        let all: Vec<&Paper> = match self.implemented {
            true => papers()
                .iter()
                .chain(foundations())
                .filter(|p| p.status == Status::Implemented)
                .collect(),
            false => papers().iter().collect(),
        };
        if globals.json {
            return output::json(&serde_json::json!({ "papers": all }));
        }
        let mut table = Table::new(["name", "title", "arXiv", "layer", "status"]);
        for paper in all {
            let cells = [paper.name, paper.title, paper.arxiv, paper.layer, paper.status.name()];
            table.push(cells.map(Cell::from));
        }
        output::print(&table.to_text())
    }
}
