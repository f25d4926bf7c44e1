//! What can be said of the kernels without a card.

use super::source::{Call, Form};

fn forms() -> Vec<Form> {
    let of = |plain, options, tracked, keep_state| Form {
        plain,
        softplus: options,
        skip: options,
        gate: options,
        tracked,
        keep_state,
    };
    let mut all = Vec::new();
    for plain in [false, true] {
        for options in [false, true] {
            all.push(of(plain, options, true, false));
        }
    }
    all.extend([of(true, true, false, true), of(false, false, true, true)]);
    all
}

/// Forms differ in their text, which is what their cubins are kept by.
#[test]
fn forms_have_texts_of_their_own() {
    let mut texts: Vec<String> = forms().into_iter().map(Form::source).collect();
    texts.sort();
    texts.dedup();
    assert_eq!(texts.len(), forms().len());
    assert!(size_of::<Call>() <= 4 << 10);
}

/// No number may leave its register.
#[cfg(feature = "cuda-nvrtc")]
#[test]
fn every_form_compiles_without_spills() {
    use crate::cuda::cubin;
    if let Err(reason) = cubin::version() {
        return println!("skipped: {reason}");
    }
    for form in forms() {
        let options = ["--gpu-architecture=sm_90", "--ptxas-options=-v"];
        let (cubin, said) =
            cubin::compile(&form.source(), &options).unwrap_or_else(|e| panic!("{form:?}: {e}"));
        assert!(cubin.starts_with(b"\x7fELF"));
        let told = said.matches("bytes spill stores").count();
        assert_eq!(told, form.entries().len(), "{form:?}: {said}");
        assert_eq!(said.matches(" 0 bytes spill stores").count(), told, "{form:?}: {said}");
    }
}
