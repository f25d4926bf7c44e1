use longburn::attention::MixerConfig;
use longburn::models::{Decoder, GenerateConfig, generate};
use std::path::Path;
#[test]
fn speed() {
    let d = burn::tensor::Device::flex();
    let m = Decoder::load(Path::new("/work/shared/realdata/stories260k-hf"), &MixerConfig::Dense, &d).unwrap();
    for n in [64, 64, 256, 448] {
        let g = generate(&m, &[1, 403, 407, 261, 378], &GenerateConfig::new().with_max_new_tokens(n), |_| {}).unwrap();
        println!("{n}: prefill {:.4} decode {:.4} {:.0} tok/s", g.seconds_prefill, g.seconds_decode, g.tokens_per_second);
        println!("{:?}", &g.ids[..20]);
    }
}
