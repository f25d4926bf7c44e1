use burn::tensor::{Device, Tensor};
use longburn::attention::MixerConfig;
use longburn::kernel::TokenMeta;
use longburn::models::keymap::{KeyMap, LlamaKeys, params, read_params};
use longburn::models::weights::{WeightFiles, read_safetensors};
use longburn::models::{Blocks, Decoder, ForwardOptions, GenerateConfig, generate, ids_tensor, lora, peft};
use std::path::Path;
#[test]
fn speed() {
    let d = Device::flex();
    let dir = Path::new("/work/shared/realdata/stories260k-hf");
    let m = Decoder::load(dir, &MixerConfig::Dense, &d).unwrap();
    for n in [64, 64, 256, 448] {
        let g = generate(&m, &[1, 403, 407, 261, 378], &GenerateConfig::new().with_max_new_tokens(n), |_| {}).unwrap();
        println!("{n}: prefill {:.4} decode {:.4} {:.0} tok/s", g.seconds_prefill, g.seconds_decode, g.tokens_per_second);
    }
    let j: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(dir.join("golden.json")).unwrap()).unwrap();
    let list = |k: &str| -> Vec<u32> { j[k].as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect() };
    let g = generate(&m, &list("prompt_ids"), &GenerateConfig::new().with_max_new_tokens(64), |_| {}).unwrap();
    assert_eq!(g.ids, list("greedy64_ids"));
    let g = generate(&m, &[1], &GenerateConfig::new().with_max_new_tokens(200), |_| {}).unwrap();
    assert_eq!(g.ids, list("greedy_from_bos_200_ids"));
    let f = WeightFiles::open_file(&dir.join("golden.safetensors")).unwrap();
    let got = crate::tiny::logits(&m, &list("prompt32_ids"));
    let want = f.load_f32("all_logits_f32").unwrap();
    let apart = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
    println!("stories logits {apart}");
    assert!(apart < 2e-5);
    let ids = list("paragraph_ids");
    let l = crate::tiny::logits(&m, &ids[..ids.len() - 1]);
    let mut nll = 0.0f64;
    for (t, id) in ids[1..].iter().enumerate() {
        let row = &l[t * 512..(t + 1) * 512];
        let top = row.iter().fold(f32::MIN, |a, b| a.max(*b)) as f64;
        nll += top + row.iter().map(|x| (*x as f64 - top).exp()).sum::<f64>().ln() - row[*id as usize] as f64;
    }
    println!("nll {} want {}", nll / (ids.len() - 1) as f64, j["paragraph_mean_nll_nats"]);
}

#[test]
fn golden() {
    let root = Path::new("/work/shared/goldens/models");
    for (name, base) in [("lora_llama", "llama_gqa_untied_bias"), ("lora_llama_plain", "llama_mha_tied")] {
        let (tensors, meta) = read_safetensors(&root.join(format!("{name}.safetensors"))).unwrap();
        let meta: serde_json::Value = serde_json::from_str(&meta["golden"]).unwrap();
        let device = Device::flex().autodiff();
        let model = Decoder::load(&root.join(base), &MixerConfig::Dense, &device).unwrap();
        let model = peft::load_adapter(model, &root.join(name)).unwrap();
        println!("{}", longburn::models::TrainableReport::of(&model));
        let i = &tensors["in.input_ids"];
        let ids: Vec<u32> = i.data.chunks(8).map(|c| i64::from_le_bytes(c.try_into().unwrap()) as u32).collect();
        let (b, t) = (i.shape[0], i.shape[1]);
        let check = |what: &str, got: &[f32]| {
            let want = tensors[what].to_f32().unwrap();
            assert_eq!(got.len(), want.len(), "{what}");
            let apart = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
            let allowed = meta["tolerance"][what]["max_abs"].as_f64().unwrap();
            let r = crate::tiny::ratio(got, &want);
            let ar = meta["tolerance"][what]["rms_ratio"].as_f64().unwrap();
            println!("{} {name} {what} {:.3} {:.3}", if apart as f64 <= allowed && r <= ar { "ok" } else { "FAIL" }, apart as f64 / allowed, r / ar);
        };
        let run = |m: &Decoder| {
            let h = m.forward_ids(ids_tensor(&ids, b, &device), &TokenMeta::contiguous(b, t, 0), &ForwardOptions::train(), vec![]).unwrap();
            m.logits(h.last)
        };
        let host = |x: Tensor<3>| x.inner().into_data().iter::<f32>().collect::<Vec<f32>>();
        let logits = run(&model);
        check("out.logits_adapter", &host(logits.clone()));
        let v = logits.dims()[2];
        let lp = burn::tensor::activation::log_softmax(logits.narrow(1, 0, t - 1).reshape([b * (t - 1), v]), 1);
        let labels: Vec<i32> = (0..b).flat_map(|r| ids[r * t + 1..(r + 1) * t].iter().map(|x| *x as i32)).collect();
        let labels = Tensor::<2, burn::tensor::Int>::from_data(burn::tensor::TensorData::new(labels, [b * (t - 1), 1]), &device);
        let loss = lp.gather(1, labels).mean().neg();
        check("out.loss", &[loss.clone().into_scalar::<f32>()]);
        let grads = loss.backward();
        struct V<'a> { grads: &'a burn::tensor::Gradients, path: Vec<(String, bool)>, out: Vec<(String, Vec<f32>)> }
        impl burn::module::ModuleVisitor for V<'_> {
            fn visit_float<const D: usize>(&mut self, p: &burn::module::Param<Tensor<D>>) {
                if let Some(g) = p.grad(self.grads) {
                    let path: Vec<_> = self.path.iter().filter(|x| !x.1).map(|x| x.0.clone()).collect();
                    self.out.push((path.join("."), g.into_data().iter::<f32>().collect()));
                }
            }
            fn enter_module(&mut self, n: &str, c: &str) { self.path.push((n.into(), c.starts_with("Enum:"))); }
            fn exit_module(&mut self, _: &str, _: &str) { self.path.pop(); }
        }
        let mut v = V { grads: &grads, path: vec![], out: vec![] };
        burn::module::Module::visit(&model, &mut v);
        let mut seen = 0;
        for (path, g) in v.out {
            let name = if let Some(l) = path.strip_suffix(".lora.a") { format!("{}.lora_A.weight", LlamaKeys.to_hf(&format!("{l}.weight")).unwrap().strip_suffix(".weight").unwrap()) }
                else if let Some(l) = path.strip_suffix(".lora.b") { format!("{}.lora_B.weight", LlamaKeys.to_hf(&format!("{l}.weight")).unwrap().strip_suffix(".weight").unwrap()) }
                else { LlamaKeys.to_hf(&path).unwrap().replace(".weight", ".modules_to_save.weight") };
            check(&format!("grad.{name}"), &g);
            seen += 1;
        }
        assert_eq!(seen, tensors.keys().filter(|k| k.starts_with("grad.")).count());
        let merged = lora::merge(model);
        check("out.logits_merged", &host(run(&merged)));
        for (path, _, data) in read_params(&merged, |_| true) {
            let key = format!("merged.{}", LlamaKeys.to_hf(&path).unwrap());
            if tensors.contains_key(&key) { check(&key, &data); }
        }
        let _ = params(&merged);
    }
}
