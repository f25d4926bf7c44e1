//! `mask.cuh`, compiled for this machine, against the definition of what a mask shows.

use super::super::hidden::Hidden;
use super::super::launch::Side;
use super::super::rules::{BLOCK, Tokens};
use super::{Scratch, masks};
use std::fs::File;
use std::process::Command;

/// Reads masks and writes a byte per pair: rows, heads, queries, keys.
const MAIN: &str = r#"
#include <stdio.h>
#include <stdlib.h>
int main(void) {
  int rules, count;
  struct Side side;
  while (fread(&rules, 4, 1, stdin) == 1) {
    if (fread(&side.heads, 4, INTS, stdin) != INTS || fread(&count, 4, 1, stdin) != 1) return 1;
    int* numbers = malloc(4 * (size_t)count);
    if (fread(numbers, 4, count, stdin) != (size_t)count) return 1;
    side.numbers = numbers;
    for (int b = 0; b < side.batch; b++)
      for (int h = 0; h < side.all_heads; h++) {
        struct View view = view_of(rules, &side, b, h);
        for (int t = 0; t < side.queries; t++) {
          struct Query q = query_at(rules, &side, &view, t);
          // Behind the last key, too.
          for (int s = 0; s < side.wide; s++)
            putchar(seen(rules, &side, &view, q, key_at(rules, &side, &view, s)));
        }
      }
    free(numbers);
  }
  return 0;
}
"#;

/// Numbers of a side behind its addresses.
fn ints(side: &Side) -> &[i32] {
    const COUNT: usize = (size_of::<Side>() - 3 * size_of::<u64>()) / size_of::<i32>();
    // Safe: they follow each other to the end of the struct.
    unsafe { std::slice::from_raw_parts(&raw const side.heads, COUNT) }
}

#[test]
fn kernels_see_what_masks_show() {
    let scratch = Scratch::new("seen");
    let (source, program) = (scratch.0.join("seen.c"), scratch.0.join("seen"));
    let mut bytes = Vec::new();
    let mut put = |x: &[i32]| bytes.extend(x.iter().flat_map(|x| x.to_le_bytes()));
    let masks = masks();
    let mut count = 0;
    for (name, mask) in &masks {
        let tokens = Tokens::new(mask).expect(name);
        put(&[tokens.rules.of_pairs().bits() as i32]);
        put(ints(&tokens.side));
        count = ints(&tokens.side).len();
        put(&[tokens.numbers.len() as i32]);
        put(&tokens.numbers);
    }
    let text = format!(
        "#define ON_CARD static\n#define READ(p) (*(p))\n#define INTS {count}\n{}{MAIN}",
        include_str!("../mask.cuh")
    );
    std::fs::write(&source, text).unwrap();
    let compiled = Command::new("cc").args(["-O1", "-o"]).arg(&program).arg(&source).status();
    match compiled {
        Ok(status) => assert!(status.success(), "mask.cuh is no C"),
        Err(e) => return println!("skipped: there is no C compiler ({e})"),
    }
    let input = scratch.0.join("masks");
    std::fs::write(&input, bytes).unwrap();
    let done = Command::new(&program).stdin(File::open(&input).unwrap()).output().unwrap();
    assert!(done.status.success());
    let mut said = done.stdout.into_iter();
    for (name, mask) in &masks {
        let (queries, keys) = (mask.queries().len(), mask.keys().len());
        let hidden = Hidden::new(mask, (BLOCK, BLOCK));
        for n in 0..mask.queries().batch() * mask.heads() * queries {
            let (b, h, t) = (n / queries / mask.heads(), n / queries % mask.heads(), n % queries);
            for s in 0..keys.next_multiple_of(128) {
                let want = s < keys && mask.visible(b, h, t, s);
                let block = hidden.bits(b, mask.class_of(h), t / BLOCK, s / BLOCK);
                let got = said.next().expect(name) == 1 && block == 0;
                assert_eq!(got, want, "{name}: row {b}, head {h}, query {t}, key {s}");
            }
        }
    }
    assert_eq!(said.next(), None);
}
