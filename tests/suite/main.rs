mod data;
mod report;
