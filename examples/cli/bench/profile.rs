//! Where the time of one run goes on a card: every kernel by name, as a table and a drawing.

use super::table::time;
use super::work::Work;
use burn::tensor::Device;
use longburn::kernel::{Launch, traced};
use longburn::training::report::{Bars, Cell, Table};
use longburn::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Bars of the drawing; what is smaller is one bar together.
const DRAWN: usize = 24;

/// What the card did in one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// From the beginning of the first kernel to the end of the last, seconds.
    pub seconds: f64,
    /// Of these, how long anything ran, seconds.
    pub busy: f64,
    /// Kernels, copies and memory sets.
    pub launches: u64,
    /// By name, the dearest first.
    pub kernels: Vec<Kernel>,
}

/// All launches of one name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kernel {
    /// As it was compiled.
    pub name: String,
    /// How often it ran.
    pub launches: u64,
    /// All of them together, seconds.
    pub seconds: f64,
    /// Of the time in which anything ran.
    pub share: f64,
}

impl Profile {
    /// One run, which has run before: nothing has to be compiled or tuned any more.
    ///
    /// # Errors
    /// Where the device does not tell, and what the run says.
    pub fn of(work: &mut dyn Work, device: &Device) -> Result<Self> {
        let (done, launches) = traced(device, || work.run(1))?;
        done?;
        if launches.is_empty() {
            return Err(Error::Unsupported {
                what: "--profile: the card reported no kernel of this run".into(),
                remedy: "another profiler may hold it; end that one".into(),
            });
        }
        Ok(Self::new(&launches))
    }

    /// Launches in the order of their beginning.
    fn new(launches: &[Launch]) -> Self {
        let nanos = |n: u64| n as f64 * 1e-9;
        let first = launches.first().map_or(0, |launch| launch.start);
        // Launches may overlap.
        let (mut busy, mut until) = (0, first);
        let mut kernels = BTreeMap::<&str, (u64, u64)>::new();
        for Launch { name, start, end } in launches {
            busy += end.saturating_sub(until.max(*start));
            until = until.max(*end);
            let kernel = kernels.entry(name).or_default();
            *kernel = (kernel.0 + 1, kernel.1 + end.saturating_sub(*start));
        }
        let share = |spent: u64| if busy == 0 { 0.0 } else { spent as f64 / busy as f64 };
        let mut kernels: Vec<Kernel> = kernels
            .into_iter()
            .map(|(name, (launches, spent))| Kernel {
                name: name.into(),
                launches,
                seconds: nanos(spent),
                share: share(spent),
            })
            .collect();
        kernels.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        let launches = launches.len() as u64;
        Self { seconds: nanos(until - first), busy: nanos(busy), launches, kernels }
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut table = Table::new(["kernel", "launches", "ms", "share (%)"]);
        table = table.decimals(2, 3).decimals(3, 1);
        for kernel in &self.kernels {
            table.push([
                Cell::from(kernel.name.as_str()),
                kernel.launches.into(),
                (kernel.seconds * 1e3).into(),
                (kernel.share * 100.0).into(),
            ]);
        }
        format!("{}\n{}", self.summary(), table.to_text())
    }

    fn summary(&self) -> String {
        let whole = 100.0 * self.busy / self.seconds.max(f64::MIN_POSITIVE);
        let (launches, busy, span) = (self.launches, time(self.busy), time(self.seconds));
        format!("{launches} launches, busy for {busy} of {span} ({whole:.0} %)")
    }

    /// Draws the dearest ones.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn draw(&self, title: &str, path: &Path) -> Result<()> {
        let mut bars = Bars::new(format!("{title}: {}", self.summary()));
        let label = |seconds: f64, share: f64| format!("{}, {:.1} %", time(seconds), share * 100.0);
        for Kernel { name, launches, seconds, share } in self.kernels.iter().take(DRAWN) {
            let name = format!("{name} ×{launches}");
            bars = bars.bar(name, *seconds, label(*seconds, *share));
        }
        let rest = self.kernels.iter().skip(DRAWN);
        let (seconds, share, kinds) =
            rest.fold((0.0, 0.0, 0), |(s, p, n), k| (s + k.seconds, p + k.share, n + 1));
        if kinds > 0 {
            bars = bars.bar(format!("{kinds} others"), seconds, label(seconds, share));
        }
        bars.save(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(name: &str, start: u64, end: u64) -> Launch {
        Launch { name: name.into(), start, end }
    }

    #[test]
    fn time_in_which_several_run_counts_once_and_gaps_do_not() {
        let seen = [
            launch("a", 1_000, 3_000),
            launch("b", 2_000, 5_000),
            launch("c", 2_500, 2_600),
            launch("a", 9_000, 11_000),
        ];
        let profile = Profile::new(&seen);
        assert!((profile.seconds - 10e-6).abs() < 1e-12 && (profile.busy - 6e-6).abs() < 1e-12);
        let names: Vec<_> = profile.kernels.iter().map(|k| (k.name.as_str(), k.launches)).collect();
        assert_eq!((profile.launches, names), (4, vec![("a", 2), ("b", 1), ("c", 1)]));
        assert!((profile.kernels[0].share - 4.0 / 6.0).abs() < 1e-9);
        let text = profile.text();
        assert!(text.starts_with("4 launches, busy for 6.0 µs of 10.0 µs (60 %)"), "{text}");
    }

    #[test]
    fn the_drawing_has_every_name_once_and_the_rest_together() {
        let seen: Vec<_> =
            (0..30).map(|i| launch(&format!("k{i:02}"), i * 10, i * 10 + i)).collect();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.svg");
        Profile::new(&seen).draw("step", &path).unwrap();
        let svg = std::fs::read_to_string(path).unwrap();
        assert!(
            svg.contains(">k29 ×1</text>") && svg.contains("6 others") && !svg.contains(">k05")
        );
    }
}
