use burn::optim::*;
use longburn::attention::*;
use longburn::kernel::*;
use longburn::models::*;
use std::time::Instant;
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = burn::tensor::Device::flex().autodiff();
    let config = ModelConfig::llama(1024, 64, 3, 4).with_tied(true).with_max_positions(512);
    for (b, t, mixer) in [(4, 128, MixerConfig::Dense), ] {
        let mut model = Decoder::new(&config, &mixer, 0, &device)?;
        let mut opt = AdamWConfig::new().init();
        let ids: Vec<u32> = (0..b * t).map(|i| (i * 7919 % 1024) as u32).collect();
        let labels: Vec<i64> = (0..b * t).map(|i| (i * 31 % 1024) as i64).collect();
        let tokens = TokenMeta::contiguous(b, t, 0);
        let (mut f, mut bw, mut o) = (0.0, 0.0, 0.0);
        let n = 100;
        for step in 0..n + 5 {
            if step == 5 { (f, bw, o) = (0.0, 0.0, 0.0); }
            let s = Instant::now();
            let h = model.forward_ids(ids_tensor(&ids, b, &device), &tokens, &ForwardOptions::train(), vec![])?;
            let d = h.last.dims()[2];
            let loss = linear_cross_entropy(h.last.reshape([b * t, d]), model.head(), &labels)?.div_scalar((b * t) as f64);
            f += s.elapsed().as_secs_f64();
            let s = Instant::now();
            let grads = loss.backward();
            let grads = GradientsParams::from_grads(grads, &model);
            bw += s.elapsed().as_secs_f64();
            let s = Instant::now();
            model = opt.step(1e-3, model, grads);
            o += s.elapsed().as_secs_f64();
        }
        let n = n as f64;
        println!("B{b} T{t} {}: forward {:.1} ms backward {:.1} ms optimizer {:.1} ms", mixer.name(), f / n * 1e3, bw / n * 1e3, o / n * 1e3);
    }
    Ok(())
}
