//! A graph without numbers: what autodiff keeps of a chain of operations, and what is held at the same
//! time on the way forward and back.
//!
//! A [`Value`] stands for a tensor. It shares the room of its numbers as tensors do, so that a room is
//! free again when the last value and the last node that keep it are gone; the code that describes a
//! mixer therefore has the shape of the mixer's own. Nodes keep what the gradients of Burn's operations
//! are functions of, and run back by depth, as there.

use super::layout::{Layer, Weights};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

/// What one pass through a mixer holds, in numbers of one micro-batch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Trace {
    /// At most, on the way forward.
    pub forward: u64,
    /// Between the way forward and the way back.
    pub kept: u64,
    /// On the way back, when it is most: what was kept with gradients of activations, and gradients
    /// of weights. The gradient of the output is not counted; that of the input is left at the end.
    pub backward: (u64, u64),
    /// All gradients of weights.
    pub learned: u64,
    /// Whether some product is the library's, which has working space of its own.
    pub by_library: bool,
}

impl Trace {
    /// What `self` would be if it went on as it does from `half` to here, `times` as far again.
    pub fn extended(&self, half: &Self, times: f64) -> Self {
        let on = |here: u64, half: u64| {
            here.saturating_add((here.saturating_sub(half) as f64 * times) as u64)
        };
        Self {
            forward: on(self.forward, half.forward),
            kept: on(self.kept, half.kept),
            backward: (on(self.backward.0, half.backward.0), on(self.backward.1, half.backward.1)),
            ..*self
        }
    }
}

/// Counts what is held.
#[derive(Debug, Default)]
struct Meter {
    held: Cell<u64>,
    /// Gradients of weights.
    learned: Cell<u64>,
    /// Both, when they were most together.
    most: Cell<(u64, u64)>,
    by_library: Cell<bool>,
}

impl Meter {
    fn keep(&self, floats: u64) {
        self.held.set(self.held.get() + floats);
        self.look();
    }

    fn free(&self, floats: u64) {
        self.held.set(self.held.get() - floats);
    }

    fn learn(&self, floats: u64) {
        self.learned.set(self.learned.get() + floats);
        self.look();
    }

    fn look(&self) {
        let (now, most) = ((self.held.get(), self.learned.get()), self.most.get());
        if now.0 + now.1 > most.0 + most.1 {
            self.most.set(now);
        }
    }
}

/// Numbers of a tensor.
#[derive(Debug)]
struct Room {
    floats: u64,
    meter: Rc<Meter>,
}

impl Room {
    fn new(floats: u64, meter: &Rc<Meter>) -> Rc<Self> {
        meter.keep(floats);
        Rc::new(Self { floats, meter: meter.clone() })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.meter.free(self.floats);
    }
}

/// A tensor.
#[derive(Clone, Debug)]
pub(super) struct Value {
    /// How many numbers it has.
    pub floats: u64,
    /// None for weights, which are held in any case.
    room: Option<Rc<Room>>,
    /// Its place in the graph, where it carries a gradient.
    node: Option<usize>,
}

/// How an operation's gradient becomes that of one of its inputs.
#[derive(Clone, Copy, Debug)]
enum Back {
    /// It is the same, or a view of it.
    Same,
    /// A new tensor.
    New,
    /// A new tensor, unless nothing else holds the gradient: then in its place.
    Over,
}

#[derive(Debug)]
struct Node {
    depth: usize,
    /// Places, sizes, and how gradients get there.
    parents: Vec<(usize, u64, Back)>,
    kept: Vec<Rc<Room>>,
    /// What else the gradients take while they are computed.
    scratch: u64,
    /// Whether it is a parameter.
    learns: bool,
}

/// Records the operations of one mixer.
#[derive(Debug, Default)]
pub(super) struct Tape {
    meter: Rc<Meter>,
    nodes: RefCell<Vec<Node>>,
}

impl Tape {
    /// The trace of `mixer`, which makes an output of an input of `floats` numbers. Loss terms beside
    /// the output are the second value.
    pub fn trace(
        floats: u64,
        tracked: bool,
        mixer: impl FnOnce(&Self, Value) -> (Value, Option<Value>),
    ) -> Trace {
        let tape = Self::default();
        let mut input = tape.made(floats);
        input.node = tracked.then(|| tape.leaf(false));
        let (output, aux) = mixer(&tape, input);
        let roots = [Some(output), aux].map(|root| root.and_then(|root| root.node));
        let meter = tape.meter.clone();
        let (forward, kept) = (meter.most.get().0, meter.held.get());
        meter.most.set((kept, 0));
        tape.backward(roots.into_iter().flatten());
        Trace {
            forward,
            kept,
            backward: meter.most.get(),
            learned: meter.learned.get(),
            by_library: meter.by_library.get(),
        }
    }

    fn backward(self, roots: impl Iterator<Item = usize>) {
        let mut nodes = self.nodes.into_inner();
        let mut order: Vec<usize> = (0..nodes.len()).collect();
        order.sort_by_key(|n| (std::cmp::Reverse(nodes[*n].depth), std::cmp::Reverse(*n)));
        // Gradients that are there; none for a room that is counted elsewhere.
        let mut found: BTreeMap<usize, Option<Rc<Room>>> = roots.map(|n| (n, None)).collect();
        let mut learned = BTreeMap::new();
        for at in order {
            let Some(mut gradient) = found.remove(&at) else { continue };
            let Node { parents, kept, scratch, .. } =
                std::mem::replace(&mut nodes[at], Node::leaf(false));
            let scratch = (scratch > 0).then(|| Room::new(scratch, &self.meter));
            let last = parents.len();
            for (i, (parent, floats, back)) in parents.into_iter().enumerate() {
                let new = match back {
                    Back::Same => gradient.clone(),
                    Back::Over if i + 1 == last && gradient.as_ref().is_some_and(alone) => {
                        gradient.take()
                    }
                    Back::New | Back::Over => Some(Room::new(floats, &self.meter)),
                };
                if nodes[parent].learns {
                    drop(new);
                    if learned.insert(parent, ()).is_none() {
                        self.meter.learn(floats);
                    }
                    continue;
                }
                let sum = match found.remove(&parent) {
                    None => new,
                    // Added in place where one of them can be written.
                    Some(old) if new.as_ref().is_some_and(alone) => {
                        drop(old);
                        new
                    }
                    Some(Some(old)) if alone(&old) => Some(old),
                    Some(_) => Some(Room::new(floats, &self.meter)),
                };
                found.insert(parent, sum);
            }
            drop((gradient, scratch, kept));
        }
    }

    fn leaf(&self, learns: bool) -> usize {
        self.push(Node::leaf(learns))
    }

    fn push(&self, node: Node) -> usize {
        let mut nodes = self.nodes.borrow_mut();
        nodes.push(node);
        nodes.len() - 1
    }

    /// A new tensor without a graph.
    pub fn made(&self, floats: u64) -> Value {
        Value { floats, room: Some(Room::new(floats, &self.meter)), node: None }
    }

    /// A parameter.
    pub fn weights(&self, weights: Weights) -> Value {
        let node = (weights.trained > 0).then(|| self.leaf(true));
        Value { floats: weights.all, room: None, node }
    }

    /// Whether an operation on `inputs` enters the graph.
    pub fn tracks(&self, inputs: &[&Value]) -> bool {
        inputs.iter().any(|x| x.node.is_some())
    }

    /// An operation of the kernels: what it keeps where an input is tracked, and what it takes beside
    /// inputs and outputs, forward and backward.
    pub fn op(
        &self,
        inputs: &[&Value],
        floats: u64,
        keeps: &[&Value],
        (forward, backward): (u64, u64),
    ) -> Value {
        let output = self.made(floats);
        if forward > 0 {
            drop(self.made(forward));
        }
        self.node(inputs.iter().map(|x| (*x, Back::New)), keeps, backward, output)
    }

    /// Let the operation that made `output` keep it, too.
    pub fn keep_output(&self, output: &Value) {
        if let Some(node) = output.node {
            self.nodes.borrow_mut()[node].kept.extend(output.room.clone());
        }
    }

    fn node<'a>(
        &self,
        inputs: impl Iterator<Item = (&'a Value, Back)>,
        keeps: &[&Value],
        scratch: u64,
        mut output: Value,
    ) -> Value {
        let tracked = inputs.filter_map(|(x, back)| Some((x.node?, x.floats, back)));
        let parents: Vec<_> = tracked.collect();
        output.node = None;
        if !parents.is_empty() {
            let depth = |n: &usize| self.nodes.borrow()[*n].depth;
            let depth = 1 + parents.iter().map(|(n, ..)| depth(n)).max().unwrap_or(0);
            let kept = keeps.iter().filter_map(|x| x.room.clone()).collect();
            output.node = Some(self.push(Node { depth, parents, kept, scratch, learns: false }));
        }
        output
    }

    /// The place of the result of an elementwise operation: that of an operand that nobody needs any
    /// more, or a new one.
    fn place(&self, operands: Vec<Value>, floats: u64) -> Value {
        let free = |x: &Value| {
            x.floats == floats && x.room.as_ref().is_some_and(|r| alone(r) && r.floats == floats)
        };
        // While all are there: of x + x neither is free.
        match operands.iter().position(free).map(|i| operands[i].clone()) {
            Some(operand) => Value { node: None, ..operand },
            None => self.made(floats),
        }
    }

    /// An elementwise function whose gradient needs its input: exp, sqrt, log1p, sigmoid.
    pub fn function(&self, x: Value) -> Value {
        let input = x.seen(x.node.is_some());
        let result = self.place(vec![x], input.floats);
        self.node([(&input, Back::Over)].into_iter(), &[&input], input.floats, result)
    }

    /// An elementwise function whose gradient needs nothing: minus, scalars.
    pub fn scaled(&self, x: Value) -> Value {
        let input = x.seen(false);
        let result = self.place(vec![x], input.floats);
        self.node([(&input, Back::Over)].into_iter(), &[], 0, result)
    }

    /// A sum; one side may be broadcast.
    pub fn add(&self, a: Value, b: Value) -> Value {
        let floats = a.floats.max(b.floats);
        let inputs = [a.seen(false), b.seen(false)];
        let result = self.place(vec![a, b], floats);
        let back = |v: &Value| if v.floats == floats { Back::Same } else { Back::New };
        self.node(inputs.iter().map(|v| (v, back(v))), &[], 0, result)
    }

    /// A product, element by element; one side may be broadcast.
    pub fn mul(&self, a: Value, b: Value) -> Value {
        let keeps = [b.node.is_some(), a.node.is_some()];
        self.elementwise([a, b], keeps)
    }

    /// A quotient.
    pub fn div(&self, a: Value, b: Value) -> Value {
        let keeps = [b.node.is_some(), a.node.is_some() || b.node.is_some()];
        self.elementwise([a, b], keeps)
    }

    fn elementwise(&self, [a, b]: [Value; 2], [keep_a, keep_b]: [bool; 2]) -> Value {
        let floats = a.floats.max(b.floats);
        let inputs = [a.seen(keep_a), b.seen(keep_b)];
        let result = self.place(vec![a, b], floats);
        // A broadcast side has a gradient of the whole first, which is summed up.
        let broadcast = |v: &Value| v.floats < floats;
        let whole = inputs.iter().any(|v| v.node.is_some() && broadcast(v));
        let back = |v: &Value| if broadcast(v) { Back::New } else { Back::Over };
        let scratch = if whole { floats } else { 0 };
        let [x, y] = &inputs;
        self.node(inputs.iter().map(|v| (v, back(v))), &[x, y], scratch, result)
    }

    /// `x · sigmoid(x)`
    pub fn silu(&self, x: Value) -> Value {
        let s = self.function(x.clone());
        self.mul(x, s)
    }

    /// A matrix product of Burn's.
    pub fn matmul(&self, a: &Value, b: &Value, floats: u64) -> Value {
        let mut keeps = Vec::new();
        if b.node.is_some() {
            keeps.push(a);
        }
        if a.node.is_some() {
            keeps.push(b);
        }
        self.meter.by_library.set(true);
        self.op(&[a, b], floats, &keeps, (0, 0))
    }

    /// A linear layer with bias and low-rank update: keeps its input where a gradient is made of it.
    pub fn linear(&self, x: &Value, tokens: u64, layer: &Layer) -> Value {
        let out = tokens * layer.width;
        let product = |x: &Value, weights: &Value, out| {
            let keeps: &[&Value] = if weights.node.is_some() { &[x] } else { &[] };
            self.op(&[x, weights], out, keeps, (0, 0))
        };
        let mut y = product(x, &self.weights(layer.matrix), out);
        if layer.bias.all > 0 {
            y = self.add(y, self.weights(layer.bias));
        }
        if let Some([a, b]) = layer.update {
            let low = product(x, &self.weights(a), tokens * layer.rank);
            let update = self.scaled(product(&low, &self.weights(b), out));
            y = self.add(y, update);
        }
        y
    }

    /// The same numbers in another shape.
    pub fn view(&self, x: &Value) -> Value {
        self.node([(x, Back::Same)].into_iter(), &[], 0, x.clone())
    }

    /// A copy in another order.
    pub fn copy(&self, x: &Value) -> Value {
        self.node([(x, Back::New)].into_iter(), &[], 0, self.made(x.floats))
    }

    /// A part of x, as a view. Its gradient is as large as x.
    pub fn narrow(&self, x: &Value, floats: u64) -> Value {
        self.node([(x, Back::New)].into_iter(), &[], 0, Value { floats, ..x.clone() })
    }

    /// Sums over a dimension, or rows chosen: a small result whose gradient has the size of x.
    pub fn reduced(&self, x: &Value, floats: u64) -> Value {
        self.node([(x, Back::New)].into_iter(), &[], 0, self.made(floats))
    }

    /// Several tensors as one.
    pub fn cat(&self, parts: Vec<Value>) -> Value {
        if let [one] = &parts[..] {
            return one.clone();
        }
        let floats = parts.iter().map(|x| x.floats).sum();
        self.node(parts.iter().map(|x| (x, Back::Same)), &[], 0, self.made(floats))
    }

    /// x without a graph.
    pub fn detached(&self, x: &Value) -> Value {
        Value { node: None, ..x.clone() }
    }
}

impl Value {
    /// The same as an input of a node, which keeps its numbers or does not.
    fn seen(&self, keeps: bool) -> Self {
        Self { room: self.room.clone().filter(|_| keeps), ..*self }
    }
}

impl Node {
    fn leaf(learns: bool) -> Self {
        Self { depth: 0, parents: Vec::new(), kept: Vec::new(), scratch: 0, learns }
    }
}

fn alone(room: &Rc<Room>) -> bool {
    Rc::strong_count(room) == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A layer `2 -> 4` for five tokens.
    fn layer(trains: bool, update: bool) -> Layer {
        Layer {
            matrix: Weights::new(8, trains),
            bias: Weights::default(),
            update: update.then(|| [Weights::new(2, true), Weights::new(4, true)]),
            rank: u64::from(update),
            width: 4,
        }
    }

    /// Operations on ten numbers with a gradient: most on the way forward, what is kept, most on the
    /// way back.
    #[test]
    fn operations_hold_what_their_gradients_are_functions_of() {
        type Op = fn(&Tape, Value) -> Value;
        let cases: [(&str, Op, [u64; 3]); 14] = [
            ("function", |t, x| t.function(x), [20, 10, 30]),
            // What the second keeps is gone when the first takes its room.
            ("two functions", |t, x| t.function(t.function(x)), [30, 20, 40]),
            ("in place", |t, x| t.scaled(t.scaled(x)), [10, 0, 10]),
            ("the same twice", |t, x| t.scaled(t.add(x.clone(), x)), [20, 0, 20]),
            ("a part", |t, x| t.narrow(&x, 4), [10, 0, 10]),
            ("joined", |t, x| t.cat(vec![x.clone(), x]), [30, 0, 10]),
            ("left", |t, x| t.mul(t.made(10), x), [20, 10, 20]),
            ("right", |t, x| t.mul(x, t.made(10)), [20, 10, 20]),
            ("product, left", |t, x| t.matmul(&t.made(6), &x, 5), [21, 6, 16]),
            ("product, right", |t, x| t.matmul(&x, &t.made(6), 5), [21, 6, 16]),
            ("frozen layer", |t, x| t.linear(&x, 5, &layer(false, false)), [30, 0, 10]),
            ("layer", |t, x| t.linear(&x, 5, &layer(true, false)), [30, 10, 28]),
            ("copy", |t, x| t.copy(&x), [20, 0, 10]),
            ("view", |t, x| t.view(&x), [10, 0, 0]),
        ];
        for (name, op, want) in cases {
            let trace = Tape::trace(10, true, |tape, x| (op(tape, x), None));
            let (activations, learned) = trace.backward;
            assert_eq!([trace.forward, trace.kept, activations + learned], want, "{name}");
            assert_eq!(trace.by_library, name.starts_with("product"), "{name}");
        }
        // The input and what the first factor makes of it.
        let layer = layer(false, true);
        let trace = Tape::trace(10, true, |tape, x| (tape.linear(&x, 5, &layer), None));
        assert_eq!((trace.kept, trace.learned), (15, 6));
    }
}
