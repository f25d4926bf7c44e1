//! `longburn papers`

use crate::{Globals, output};
use clap::Args;
use longburn::Result;
use longburn::training::report::{Cell, Table};
use serde::Serialize;

/// List the papers and what there is of each
#[derive(Args)]
pub struct PapersArgs {}

/// A row of the table.
#[derive(Serialize)]
struct Paper {
    name: &'static str,
    title: &'static str,
    arxiv: &'static str,
    component: &'static str,
    status: &'static str,
}

const PAPERS: [Paper; 1] = [Paper {
    name: "longlora",
    title: "LongLoRA: Efficient Fine-tuning of Long-Context Large Language Models",
    arxiv: "2309.12307",
    component: "attention",
    status: "done",
}];

impl PapersArgs {
    pub fn run(&self, globals: &Globals) -> Result<()> {
        if globals.json {
            return output::json(&serde_json::json!({ "papers": PAPERS }));
        }
        let mut table = Table::new(["name", "title", "arXiv", "component", "status"]);
        for paper in &PAPERS {
            let cells = [paper.name, paper.title, paper.arxiv, paper.component, paper.status];
            table.push(cells.map(Cell::from));
        }
        output::print(&table.to_text())
    }
}
