mod data;
mod files;
mod report;
