//! Ways of packing documents into rows.

use longburn::attention::MixerConfig;
use longburn::datasets::{AnchorEngine, AnchorPacking, PackConfig, PackPositions};

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arm {
    Joined,
    Reset,
    Continuous,
    Anchor,
    SharedAnchor,
}

impl Arm {
    pub const ALL: [Self; 5] =
        [Self::Joined, Self::Reset, Self::Continuous, Self::Anchor, Self::SharedAnchor];

    pub fn name(self) -> &'static str {
        match self {
            Self::Joined => "joined, no documents",
            Self::Reset => "apart, positions reset",
            Self::Continuous => "apart, positions continuous",
            Self::Anchor => "anchor in every document",
            Self::SharedAnchor => "shared anchor",
        }
    }

    /// Rows of `length` tokens; `bos` is what documents begin with.
    pub fn packing(self, length: usize, bos: u32) -> PackConfig {
        let plain = PackConfig::new(length);
        let anchor = |engine| AnchorPacking::new(bos).with_engine(engine);
        match self {
            Self::Joined => plain,
            Self::Reset => plain.with_segments(true),
            Self::Continuous => plain.with_segments(true).with_positions(PackPositions::Continuous),
            Self::Anchor => plain.with_anchor(anchor(AnchorEngine::PerDocument)),
            Self::SharedAnchor => plain.with_anchor(anchor(AnchorEngine::Shared)),
        }
    }

    pub fn mixer(self) -> MixerConfig {
        match self {
            Self::SharedAnchor => MixerConfig::Anchor,
            _ => MixerConfig::Dense,
        }
    }
}
