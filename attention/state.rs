//! What a layer remembers between calls.

use super::LactState;
use super::rows::{gather_tokens, indices};
use super::seer::SeerCache;
use crate::{Error, Result};
use burn::tensor::Tensor;
use longburn_kernels::{Mask, MaskSpec, TokenMeta, leading};

/// The memory of one layer. Strategies detach, relay and count its tensors without knowing the
/// mixer.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)]
pub enum State {
    /// Keys and values of all earlier tokens.
    Kv(KvCache),
    /// Keys and values of sets of key heads, each of which keeps other tokens.
    Heads(Vec<KvCache>),
    /// Fast weights that learn, and a window of keys and values.
    Lact(Box<LactState>),
    /// The state of a state-space layer.
    Recurrent(Recurrent),
    /// The same with compressed keys, for a gate that chooses blocks.
    Seer(SeerCache),
}

/// What a state-space layer remembers, of the same size at any length.
#[derive(Clone, Debug)]
pub struct Recurrent {
    /// The last K inputs of the convolution, oldest first, `[B, 1, K, C]`
    pub conv: Tensor<4>,
    /// `[B, H, P, N]`; Mamba-1 has one head of all channels.
    pub ssm: Tensor<4>,
    /// The document that each row is in, negative where no token has come yet.
    pub documents: Vec<i32>,
    /// Tokens seen per row, padding included.
    pub tokens: usize,
}

/// Keys and values of earlier tokens, with what masks need to know of them.
#[derive(Clone, Debug)]
pub struct KvCache {
    /// `[B, K, S, D]`, rotated unless [`MixContext::unrotated_cache`](super::MixContext) is set
    pub k: Tensor<4>,
    /// `[B, K, S, E]`
    pub v: Tensor<4>,
    /// Of the cached keys.
    pub tokens: TokenMeta,
    room: Option<[Tensor<4>; 2]>,
}

/// Tokens that a cache has room for beyond those that it holds, as a part of these and at least.
const ROOM: (usize, usize) = (16, 64);

impl KvCache {
    /// A cache of these keys `[B, K, S, D]` and values `[B, K, S, E]`.
    pub fn new(k: Tensor<4>, v: Tensor<4>, tokens: TokenMeta) -> Self {
        Self { k, v, tokens, room: None }
    }

    /// The cache that a state is, for a mixer that goes on with it.
    ///
    /// # Errors
    /// [`Error::Shape`] for what another kind of mixer remembers.
    pub fn of(state: Option<State>) -> Result<Option<Self>> {
        match state {
            None => Ok(None),
            Some(State::Kv(cache)) => Ok(Some(cache)),
            Some(other) => Err(other.foreign("attention")),
        }
    }

    /// Append keys and values of new tokens.
    ///
    /// Without gradients, tokens are written into room that is made for many at once, so that a step
    /// of generation does not copy all that came before it.
    ///
    /// # Errors
    /// When the numbers of rows differ.
    pub fn append(self, k: Tensor<4>, v: Tensor<4>, tokens: &TokenMeta) -> Result<Self> {
        let tokens = self.tokens.concat(tokens)?;
        if k.is_autodiff() {
            let cat = |old, new| Tensor::cat(vec![old, new], 2);
            return Ok(Self::new(cat(self.k, k), cat(self.v, v), tokens));
        }
        let [k_room, v_room] = self.room.map_or([None, None], |room| room.map(Some));
        let (k, k_room) = grown(self.k, k_room, k);
        let (v, v_room) = grown(self.v, v_room, v);
        Ok(Self { k, v, tokens, room: Some([k_room, v_room]) })
    }

    /// Keys and values with room for a token more behind those that are there, which come first.
    pub(crate) fn into_room(self) -> ([Tensor<4>; 2], TokenMeta) {
        let Self { k, v, tokens, room } = self;
        let [k_room, v_room] = room.map_or([None, None], |room| room.map(Some));
        ([(k, k_room), (v, v_room)].map(|(old, room)| roomy(old, room, 1)), tokens)
    }

    /// A cache of `tokens`, which come first in `room`.
    pub(crate) fn in_room(room: [Tensor<4>; 2], tokens: TokenMeta) -> Self {
        let [k, v] = room.clone().map(|x| leading(x, tokens.len()));
        Self { k, v, tokens, room: Some(room) }
    }

    /// Key heads `heads` alone.
    pub fn heads(&self, heads: &[usize]) -> Self {
        let pick = |x: &Tensor<4>| x.clone().select(1, indices(heads.iter().copied(), &x.device()));
        Self::new(pick(&self.k), pick(&self.v), self.tokens.clone())
    }

    /// Without the keys that no later query sees under `spec`, in calls with `heads` query heads.
    ///
    /// It is for rules whose view only moves on (windows, sinks, strides): what the next query of a
    /// document does not see, none after it does. Where rows keep different numbers of keys, the
    /// shorter ones are filled up with padding.
    ///
    /// # Errors
    /// When `spec` does not fit the heads.
    pub fn evict(self, spec: &MaskSpec, heads: usize) -> Result<Self> {
        let (batch, len) = (self.tokens.batch(), self.tokens.len());
        let next = next_queries(&self.tokens)?;
        let mask = Mask::new(spec.clone(), next, self.tokens.clone(), heads)?;
        let seen = |b: usize, s: usize| {
            let queries = 0..mask.queries().len();
            queries.into_iter().any(|t| (0..heads).any(|h| mask.visible(b, h, t, s)))
        };
        let mut rows: Vec<Vec<usize>> =
            (0..batch).map(|b| (0..len).filter(|s| seen(b, *s)).collect()).collect();
        let most = rows.iter().map(Vec::len).max().unwrap_or(0);
        if most == len {
            return Ok(self);
        }
        if most == 0 {
            // A tensor holds at least one token.
            rows[0].push(0);
        }
        let tokens = self.tokens.gather(&rows)?;
        let places = |b: usize, row: &[usize]| -> Vec<usize> {
            (0..tokens.len()).map(|i| b * len + row.get(i).copied().unwrap_or(0)).collect()
        };
        let places: Vec<usize> =
            rows.iter().enumerate().flat_map(|(b, row)| places(b, row)).collect();
        let pick = |x| gather_tokens(x, &places);
        Ok(Self::new(pick(self.k), pick(self.v), tokens))
    }
}

/// `old` `[B, K, S, D]` and `new` behind it, and the memory that they lie in. `old` is a part of
/// `room`, where there is any.
fn grown(old: Tensor<4>, room: Option<Tensor<4>>, new: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
    let ([b, heads, len, d], more) = (old.dims(), new.dims()[2]);
    let all = len + more;
    let room = roomy(old, room, more).slice_assign([0..b, 0..heads, len..all, 0..d], new);
    (leading(room.clone(), all), room)
}

/// Memory that begins with `old` `[B, K, S, D]` and has room for `more` tokens: `room`, of which `old` is a part, or new.
fn roomy(old: Tensor<4>, room: Option<Tensor<4>>, more: usize) -> Tensor<4> {
    let [b, heads, len, d] = old.dims();
    let all = len + more;
    match room {
        Some(room) if room.dims()[2] >= all => {
            // The room is written where it lies if nobody else looks at it.
            drop(old);
            room
        }
        _ => {
            let more = more + (all / ROOM.0).max(ROOM.1);
            let empty = Tensor::<4>::zeros([b, heads, more, d], &old.device()).cast(old.dtype());
            Tensor::cat(vec![old, empty], 2)
        }
    }
}

/// One query behind the last key of every document, `[B, most documents of a row]`.
fn next_queries(tokens: &TokenMeta) -> Result<TokenMeta> {
    let mut rows: Vec<Vec<(i32, i32)>> = Vec::with_capacity(tokens.batch());
    for b in 0..tokens.batch() {
        let mut row: Vec<(i32, i32)> = Vec::new();
        let range = b * tokens.len()..(b + 1) * tokens.len();
        for (&pos, &segment) in tokens.pos()[range.clone()].iter().zip(&tokens.segment()[range]) {
            let next = pos.saturating_add(1);
            match row.iter_mut().rev().find(|(_, of)| *of == segment) {
                Some((last, _)) => *last = (*last).max(next),
                None if segment >= 0 => row.push((next, segment)),
                None => {}
            }
        }
        rows.push(row);
    }
    let most = rows.iter().map(Vec::len).max().unwrap_or(0);
    let padded = |row: &Vec<(i32, i32)>| {
        row.iter().copied().chain(std::iter::repeat((0, -1))).take(most).collect::<Vec<_>>()
    };
    let (pos, segment) = rows.iter().flat_map(padded).unzip();
    Ok(TokenMeta::new(tokens.batch(), most, pos, segment)?)
}

impl State {
    /// The state's tensors, in a fixed order.
    pub fn tensors(&self) -> Vec<Tensor<4>> {
        match self {
            Self::Kv(cache) => vec![cache.k.clone(), cache.v.clone()],
            Self::Heads(caches) => {
                caches.iter().flat_map(|cache| [cache.k.clone(), cache.v.clone()]).collect()
            }
            Self::Lact(state) => state.tensors(),
            Self::Recurrent(state) => vec![state.conv.clone(), state.ssm.clone()],
            Self::Seer(SeerCache { kv, gate }) => {
                vec![kv.k.clone(), kv.v.clone(), gate.blocks.clone(), gate.open.clone()]
            }
        }
    }

    /// The same state with other tensors (detached, on another device ...), in the same order.
    ///
    /// # Errors
    /// When the number of tensors differs.
    pub fn from_tensors(&self, tensors: Vec<Tensor<4>>) -> Result<Self> {
        if let Self::Lact(state) = self {
            return Ok(Self::Lact(Box::new(state.with_tensors(tensors)?)));
        }
        let (n, wanted) = (tensors.len(), self.tensors().len());
        if n != wanted {
            let reason = format!("{n} tensors where the state has {wanted}");
            return Err(Error::shape("State", reason));
        }
        let mut tensors = tensors.into_iter();
        // There are as many as the state has.
        let mut next = |old: &Tensor<4>| tensors.next().unwrap_or_else(|| old.clone());
        let mut renewed =
            |cache: &KvCache| KvCache::new(next(&cache.k), next(&cache.v), cache.tokens.clone());
        Ok(match self {
            Self::Kv(cache) => Self::Kv(renewed(cache)),
            Self::Heads(caches) => Self::Heads(caches.iter().map(renewed).collect()),
            Self::Lact(_) => self.clone(),
            Self::Recurrent(state) => Self::Recurrent(Recurrent {
                conv: next(&state.conv),
                ssm: next(&state.ssm),
                ..state.clone()
            }),
            Self::Seer(SeerCache { kv, gate }) => {
                let kv = renewed(kv);
                let mut gate = gate.clone();
                (gate.blocks, gate.open) = (next(&gate.blocks), next(&gate.open));
                Self::Seer(SeerCache { kv, gate })
            }
        })
    }

    /// Tokens remembered per row; where heads differ, of the one that remembers most.
    pub fn len(&self) -> usize {
        match self {
            Self::Kv(cache) => cache.tokens.len(),
            Self::Heads(caches) => caches.iter().map(|cache| cache.tokens.len()).max().unwrap_or(0),
            Self::Recurrent(state) => state.tokens,
            Self::Lact(state) => state.window.tokens.len(),
            Self::Seer(cache) => cache.kv.tokens.len(),
        }
    }

    /// What kind of memory it is, for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Kv(_) => "keys and values",
            Self::Heads(_) => "keys and values by heads",
            Self::Recurrent(_) => "a recurrent state",
            Self::Lact(_) => "fast weights",
            Self::Seer(_) => "keys and values with compressed keys",
        }
    }

    /// The refusal of a state that another kind of mixer made.
    pub(crate) fn foreign(&self, mixer: &str) -> Error {
        Error::shape(mixer, format!("the state of another kind of layer, {}", self.kind()))
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let size = |x: &Tensor<4>| x.shape().num_elements() * x.dtype().size();
        self.tensors().iter().map(size).sum()
    }
}
