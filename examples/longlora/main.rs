use longburn::attention::MixerConfig;
use longburn::models::*;
use longburn::kernel::TokenMeta;
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::path::PathBuf::from(std::env::args().nth(1).unwrap());
    let device = burn::tensor::Device::flex();
    let model = Decoder::load(&dir, &MixerConfig::Dense, &device)?;
    let golden: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(dir.join("golden.json"))?)?;
    let ids: Vec<u32> = golden["paragraph_ids"].as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect();
    let t = ids.len();
    let x = ids_tensor(&ids, 1, &device);
    let h = model.forward_ids(x, &TokenMeta::contiguous(1, t, 0), &ForwardOptions::infer(), vec![])?;
    let logits = burn::tensor::activation::log_softmax(model.logits(h.last), 2);
    let data: Vec<f32> = logits.into_data().iter::<f32>().collect();
    let v = 512;
    let mut s = 0.0;
    for i in 0..t - 1 { s -= data[i * v + ids[i + 1] as usize] as f64; }
    println!("{} want {}", s / (t - 1) as f64, golden["paragraph_mean_nll_nats"]);
    Ok(())
}
