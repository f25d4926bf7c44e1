//! The generator that Python programs draw their tests from.

const N: usize = 624;
const M: usize = 397;

/// numpy's legacy generator (`numpy.random.seed` and `randint`): the Mersenne Twister MT19937.
///
/// Only published tests that were drawn from it need it; everything else here draws from
/// [`Streams`](crate::streams::Streams).
#[derive(Clone, Debug)]
pub struct LegacyRandom {
    state: [u32; N],
    next: usize,
}

impl LegacyRandom {
    /// As `numpy.random.seed(seed)` sets it.
    pub fn new(seed: u32) -> Self {
        let mut state = [seed; N];
        for i in 1..N {
            let before = state[i - 1];
            state[i] = (before ^ (before >> 30)).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        Self { state, next: N }
    }

    /// The next 32 bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.next == N {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9D2C_5680;
        y ^= (y << 15) & 0xEFC6_0000;
        y ^ (y >> 18)
    }

    /// Uniform in `0..n`, as `randint(0, n)`: bits above the range are masked off, and numbers
    /// that are still too large are drawn again. 0 where `n` is 0.
    pub fn below(&mut self, n: u32) -> u32 {
        let Some(last) = n.checked_sub(1).filter(|last| *last > 0) else { return 0 };
        let mask = u32::MAX >> last.leading_zeros();
        loop {
            let drawn = self.next_u32() & mask;
            if drawn <= last {
                return drawn;
            }
        }
    }

    fn twist(&mut self) {
        for i in 0..N {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7FFF_FFFF);
            let odd = if y & 1 == 1 { 0x9908_B0DF } else { 0 };
            self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ odd;
        }
        self.next = 0;
    }
}
