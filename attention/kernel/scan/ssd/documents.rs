//! Which tokens the form out of tensor operations computes at once.
//!
//! A product of matrices takes all of its tokens, and zero times what is no number is no number:
//! documents that shared a product would reach each other. So documents lie side by side as rows do,
//! without padding between them, those of about a length together, so that short ones do not make many
//! small products; those that are one chunk without a state are apart from the others.

use crate::scan::{Step, Steps};
use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData};
use std::cmp::Reverse;

/// A document, or as much of it as a row has.
struct Document {
    row: usize,
    /// Where its tokens are among those of all rows, without padding.
    tokens: Vec<usize>,
    /// Whether it goes on from the state that the row is given.
    goes_on: bool,
    /// Whether it leaves the row's last state.
    leaves: bool,
}

/// Documents side by side, the longest first.
pub(super) struct Group {
    documents: Vec<Document>,
    /// Whether some document has a state before or behind a chunk.
    pub states: bool,
    /// Places of each: of the longest, and up to the end of its last chunk.
    tokens: usize,
    /// Places before it in the order of all.
    place: usize,
}

/// How documents are cut and how many numbers they take.
pub(super) struct Limits {
    /// Tokens per chunk.
    pub chunk: usize,
    /// Numbers of the largest tensors.
    pub most: usize,
    pub heads: usize,
    /// Numbers of a state, N·E.
    pub state: usize,
}

impl Limits {
    /// Documents of that length whose chunks are computed at once.
    pub fn at_once(&self, tokens: usize, states: bool) -> usize {
        let q = self.chunk.min(tokens);
        let pairs = self.heads * q * q;
        (self.most / if states { pairs.max(self.state) } else { pairs }).max(1)
    }
}

/// Where documents are not whole rows: how tokens get to their places and back.
struct Gather {
    /// The token at each place.
    order: Tensor<1, Int>,
    /// Places behind the end of a document, `[places, 1]`, if there are any.
    empty: Option<Tensor<2, Bool>>,
    /// The place of each token; that behind all places for padding.
    places: Tensor<1, Int>,
    padding: bool,
}

/// The documents of a call.
pub(super) struct Documents {
    batch: usize,
    len: usize,
    pub groups: Vec<Group>,
    /// None where every row is a document, whose tokens are read where they lie.
    gather: Option<Gather>,
}

impl Documents {
    /// A row's last state is looked for where `keep_state` says so.
    pub fn new(steps: &Steps, limits: &Limits, keep_state: bool, device: &Device) -> Self {
        let (batch, len) = (steps.batch(), steps.len());
        let mut groups = Vec::new();
        if steps.is_plain() {
            let documents = (0..batch).flat_map(|row| of_row(steps, row)).collect();
            groups.push(Group { documents, states: true, tokens: len, place: 0 });
            return Self { batch, len, groups, gather: None };
        }
        let has_state =
            |d: &Document| d.goes_on || (d.leaves && keep_state) || d.tokens.len() > limits.chunk;
        let (mut with, mut without): (Vec<_>, Vec<_>) =
            (0..batch).flat_map(|row| of_row(steps, row)).partition(has_state);
        for all in [&mut with, &mut without] {
            all.sort_by_key(|document| Reverse(document.tokens.len()));
        }
        let mut place = 0;
        for (mut rest, states) in [(with, true), (without, false)] {
            while let Some(longest) = rest.first().map(|document| document.tokens.len()) {
                // No more tokens at once than the rows have, and not half of them empty places.
                let at_once = limits.at_once(longest, states).min((batch * len / longest).max(1));
                let alike = |document: &&Document| document.tokens.len() * 2 >= longest;
                let count = rest.iter().take(at_once).take_while(alike).count();
                let others = rest.split_off(count);
                let tokens = longest.next_multiple_of(limits.chunk.min(longest));
                groups.push(Group { documents: rest, states, tokens, place });
                place += count * tokens;
                rest = others;
            }
        }
        let gather = Some(Gather::new(&groups, steps, place, device));
        Self { batch, len, groups, gather }
    }

    /// Tokens of a group, zeros behind the end of a document: `[B, T, X] -> [S, t, X]`
    pub fn take(&self, x: &Tensor<3>, group: &Group) -> Tensor<3> {
        let Some(gather) = &self.gather else {
            return x.clone();
        };
        let [batch, len, width] = x.dims();
        let documents = group.documents.len();
        let places = documents * group.tokens;
        let order = gather.order.clone().narrow(0, group.place, places);
        let x = x.clone().reshape([batch * len, width]).select(0, order);
        let x = match &gather.empty {
            Some(empty) => x.mask_fill(empty.clone().narrow(0, group.place, places), 0.0),
            None => x,
        };
        x.reshape([documents, group.tokens, width])
    }

    /// Tokens of all groups, in their order, back in the rows; zeros for padding:
    /// `[S, t, X] -> [B, T, X]`, in the precision of `like`, which has that shape.
    pub fn put(&self, groups: Vec<Tensor<3>>, like: &Tensor<3>) -> Tensor<3> {
        let width = like.dims()[2];
        let groups = groups.into_iter().map(|x| x.cast(like.dtype()));
        let Some(gather) = &self.gather else {
            return joined(groups.collect(), 1);
        };
        let flat = |x: Tensor<3>| {
            let [documents, tokens, _] = x.dims();
            x.reshape([documents * tokens, width])
        };
        let mut rows: Vec<Tensor<2>> = groups.map(flat).collect();
        if gather.padding {
            rows.push(Tensor::zeros([1, width], (&like.device(), like.dtype())));
        }
        let places = gather.places.clone();
        joined(rows, 0).select(0, places).reshape([self.batch, self.len, width])
    }

    /// States before the documents of a group, of those that the rows are given; none where no
    /// document has one: `[B, N, E] -> [S, N, E]`
    pub fn before(&self, group: &Group, h0: &Tensor<3>) -> Option<Tensor<3>> {
        group.states.then(|| self.to_documents(group, h0, |document| document.goes_on))
    }

    /// Gradients of the states behind the documents of a group, of those behind the rows.
    pub fn behind(&self, group: &Group, dh: &Tensor<3>) -> Option<Tensor<3>> {
        group.states.then(|| self.to_documents(group, dh, |document| document.leaves))
    }

    /// The state behind each row, of those behind the documents of all groups that have any.
    pub fn last(&self, ends: Vec<Tensor<3>>, h0: &Tensor<3>) -> Tensor<3> {
        self.to_rows(ends, h0, |document| document.leaves)
    }

    /// Gradients of the states that rows are given, of those before the documents of all groups that
    /// have any.
    pub fn first(&self, carries: Vec<Tensor<3>>, dh: &Tensor<3>) -> Tensor<3> {
        self.to_rows(carries, dh, |document| document.goes_on)
    }

    /// What each row has for those documents that have something of it, zeros for the others.
    fn to_documents(
        &self,
        group: &Group,
        of_rows: &Tensor<3>,
        has: impl Fn(&Document) -> bool,
    ) -> Tensor<3> {
        if self.gather.is_none() {
            return of_rows.clone();
        }
        let rows = group.documents.iter().map(|document| document.row).collect();
        let without: Vec<bool> = group.documents.iter().map(|document| !has(document)).collect();
        replaced(of_rows.clone().select(0, index(rows, &of_rows.device())), without)
    }

    /// For each row what the document has that has something of it. States pass by rows of padding
    /// alone, and nothing passes by a document.
    fn to_rows(
        &self,
        of_documents: Vec<Tensor<3>>,
        of_rows: &Tensor<3>,
        has: impl Fn(&Document) -> bool,
    ) -> Tensor<3> {
        if self.gather.is_none() {
            return joined(of_documents, 0);
        }
        let groups = || self.groups.iter().filter(|group| group.states);
        let documents: Vec<&Document> = groups().flat_map(|group| &group.documents).collect();
        let mut places: Vec<usize> = (0..self.batch).map(|row| documents.len() + row).collect();
        for (place, document) in documents.iter().enumerate().filter(|(_, document)| has(document))
        {
            places[document.row] = place;
        }
        let mut filled = vec![false; self.batch];
        for document in self.groups.iter().flat_map(|group| &group.documents) {
            filled[document.row] = true;
        }
        let mut all = of_documents;
        all.push(replaced(of_rows.clone(), filled));
        Tensor::cat(all, 0).select(0, index(places, &of_rows.device()))
    }
}

impl Gather {
    fn new(groups: &[Group], steps: &Steps, size: usize, device: &Device) -> Self {
        let mut places = vec![size; steps.batch() * steps.len()];
        let (mut order, mut empty) = (Vec::with_capacity(size), Vec::with_capacity(size));
        for group in groups {
            for document in &group.documents {
                for t in 0..group.tokens {
                    let token = document.tokens.get(t).copied();
                    if let Some(token) = token {
                        places[token] = order.len();
                    }
                    empty.push(token.is_none());
                    order.push(token.unwrap_or(0));
                }
            }
        }
        let has_empty = empty.contains(&true);
        let mask = || Tensor::from_data(TensorData::new(empty, [size, 1]), device);
        Self {
            // A tensor has no dimension of size 0.
            order: index(if size == 0 { vec![0] } else { order }, device),
            empty: has_empty.then(mask),
            places: index(places, device),
            padding: steps.has_padding(),
        }
    }
}

/// Side by side; one alone is not copied.
pub(super) fn joined<const D: usize>(mut parts: Vec<Tensor<D>>, dim: usize) -> Tensor<D> {
    if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(parts, dim) }
}

/// The documents of a row, in order.
fn of_row(steps: &Steps, row: usize) -> Vec<Document> {
    let mut documents: Vec<Document> = Vec::new();
    for (t, step) in steps.row(row).iter().enumerate() {
        let token = row * steps.len() + t;
        match (step, documents.last_mut()) {
            (Step::Skip, _) => {}
            (Step::Next, Some(document)) => document.tokens.push(token),
            (Step::Next, None) | (Step::First, _) => {
                let goes_on = *step == Step::Next;
                documents.push(Document { row, tokens: vec![token], goes_on, leaves: false });
            }
        }
    }
    if let Some(last) = documents.last_mut() {
        last.leaves = true;
    }
    documents
}

/// Zeros in the place of those that `mask` names; what is no number would outlive a factor of zero.
fn replaced(x: Tensor<3>, mask: Vec<bool>) -> Tensor<3> {
    if !mask.contains(&true) {
        return x;
    }
    let shape = [mask.len(), 1, 1];
    let mask = Tensor::<3, Bool>::from_data(TensorData::new(mask, shape), &x.device());
    x.mask_fill(mask, 0.0)
}

fn index(places: Vec<usize>, device: &Device) -> Tensor<1, Int> {
    let places: Vec<i32> = places.into_iter().map(|place| place as i32).collect();
    let shape = [places.len()];
    Tensor::from_data(TensorData::new(places, shape), (device, DType::I32))
}
