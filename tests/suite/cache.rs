//! Caches grow where they lie, and copies of them keep what they had.

use burn::tensor::{Device, Distribution, Tensor};
use longburn::attention::KvCache;
use longburn::kernel::TokenMeta;

/// Enough tokens to outgrow the room several times.
const LEN: usize = 300;

/// `[2, 3, LEN, 4]`
fn random(device: &Device) -> Tensor<4> {
    Tensor::random([2, 3, LEN, 4], Distribution::Normal(0.0, 1.0), device)
}

fn numbers(x: &Tensor<4>) -> Vec<f32> {
    x.to_data().try_to_vec().unwrap()
}

#[test]
fn tokens_appended_one_by_one_are_all_there() {
    let device = Device::flex();
    for device in [device.clone(), device.autodiff()] {
        let (k, v) = (random(&device), random(&device));
        let part = |x: &Tensor<4>, from: usize, len: usize| x.clone().narrow(2, from, len);
        let meta = |from: usize, len: usize| TokenMeta::contiguous(2, len, from);
        let mut cache = KvCache::new(part(&k, 0, 7), part(&v, 0, 7), meta(0, 7));
        let mut copies = Vec::new();
        let mut len = 7;
        for step in [1, 1, 1, 60, 1, 5].into_iter().chain(std::iter::repeat_n(1, 224)) {
            if len % 50 < 2 {
                copies.push((len, cache.clone()));
            }
            cache =
                cache.append(part(&k, len, step), part(&v, len, step), &meta(len, step)).unwrap();
            len += step;
        }
        assert_eq!((len, cache.tokens.len()), (LEN, LEN));
        assert_eq!(numbers(&cache.k), numbers(&k));
        assert_eq!(numbers(&cache.v), numbers(&v));
        assert!(copies.len() > 4, "{}", copies.len());
        for (len, copy) in copies {
            assert_eq!(numbers(&copy.k), numbers(&part(&k, 0, len)), "{len} tokens");
            // Another continuation of the same beginning.
            let other = copy.append(part(&v, len, 1), part(&k, len, 1), &meta(len, 1)).unwrap();
            assert_eq!(numbers(&other.k.narrow(2, len, 1)), numbers(&part(&v, len, 1)));
            assert_eq!(numbers(&cache.k), numbers(&k), "a copy at {len} tokens went on");
        }
    }
}

/// One token after many costs what it holds, not what came before.
#[test]
fn a_step_copies_nothing_of_what_came_before() {
    let device = Device::flex();
    let (k, v) = (random(&device), random(&device));
    let one = |x: &Tensor<4>| x.clone().narrow(2, 0, 1);
    let mut cache = KvCache::new(k.clone(), v.clone(), TokenMeta::contiguous(2, LEN, 0));
    let mut append = |at: usize| {
        let old = std::mem::replace(
            &mut cache,
            KvCache::new(one(&k), one(&v), TokenMeta::contiguous(2, 1, 0)),
        );
        let (k, v, meta) = (one(&k), one(&v), TokenMeta::contiguous(2, 1, at));
        let mut grown = None;
        let peak = crate::alloc::measure(|| grown = Some(old.append(k, v, &meta).unwrap())).peak;
        cache = grown.unwrap();
        peak
    };
    let bytes = 2 * 2 * 3 * LEN * 4 * 4;
    assert!(append(LEN) > bytes, "the first one makes room");
    let peak = append(LEN + 1);
    assert!(peak < bytes / 2, "{peak} of {bytes} bytes");
}
