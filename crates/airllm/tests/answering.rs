//! Many prompts in one run: the answers are those that each gets alone, and the weights flow once for all of them.
#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

use airllm::{AutoModel, Builder, Error, FinishReason, Generation, Physics, Prompt};
use airllm_tests::checkpoint::{Checkpoint, Shape};

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new(shape: Shape) -> Place {
        let dir = tempfile::tempdir().unwrap();
        Checkpoint::new(shape).write(&dir.path().join("model")).unwrap();
        Place { dir }
    }

    fn builder(&self) -> Builder {
        AutoModel::builder().device(airllm::Device::Cpu).home(self.dir.path().join("home")).threads(2)
    }

    fn checkpoint(&self) -> airllm::Checkpoint {
        self.builder().find(self.dir.path().join("model").to_str().unwrap()).unwrap()
    }

    fn load(&self, builder: &Builder) -> AutoModel {
        builder.load(&self.checkpoint()).unwrap()
    }

    /// The smallest budget that works for these prompts.
    fn least(&self, prompts: &[Prompt]) -> u64 {
        match self.builder().ram(1).answering(prompts).load(&self.checkpoint()) {
            Err(Error::Budget { need, have: 1, fixed, context, .. }) => {
                assert!(fixed > 0 && context > 0);
                need
            }
            other => panic!("{other:?}"),
        }
    }
}

const SHAPE: Shape = Shape { layers: 4, context: 256, ..Shape::TINY };

/// Layers of 5 MB, more than what a pass of a thousand tokens needs beside them.
const LARGE: Shape = Shape {
    hidden: 512,
    intermediate: 1024,
    layers: 6,
    heads: 8,
    kv_heads: 4,
    head_dim: 64,
    context: 1024,
    ..SHAPE
};

/// Prompts of many lengths, of which every third is sampled, each in a way of its own.
fn prompts(count: u64) -> Vec<Prompt> {
    let one = |i: u64| {
        let ids = (0..1 + i * 7 % 23).map(|t| (5 + i * 31 + t * 17) as u32 % 256).collect();
        let options = Generation::default().max_new_tokens(4 + (i * 5 % 11) as usize).ignore_eos(true);
        Prompt::new(
            ids,
            match i % 3 {
                0 => options,
                1 => options.temperature(1.1).seed(i).top_p(0.9),
                _ => ('a'..='z')
                    .fold(options.temperature(0.7).seed(i).repetition_penalty(1.3), Generation::stop),
            },
        )
    };
    (0..count).map(one).collect()
}

type Ended = (Vec<u32>, String, FinishReason);

/// The answers, and the physics of the run.
fn answers(model: &AutoModel, prompts: &[Prompt]) -> (Vec<Ended>, Physics) {
    let mut run = model.answer(prompts.to_vec()).unwrap();
    let mut ended = 0;
    while let Some(piece) = run.next() {
        let piece = piece.unwrap();
        ended += usize::from(piece.finish.is_some());
        assert!(run.progress().active <= model.plan().sequences, "{:?}", run.progress());
    }
    let now = run.progress();
    assert_eq!((ended, now.done, now.of, now.active), (prompts.len(), prompts.len(), prompts.len(), 0));
    assert_eq!((now.tokens_left, now.tokens), (0.0, run.answers().map(|answer| answer.ids.len()).sum()));
    let list = (0..prompts.len()).map(|number| {
        let answer = run.answer(number).unwrap();
        assert_eq!(answer.prompt_ids, prompts[number].ids);
        (answer.ids.clone(), answer.text.clone(), answer.finish.unwrap())
    });
    (list.collect(), run.physics())
}

#[test]
fn an_answer_is_what_its_prompt_gets_alone() {
    let place = Place::new(SHAPE);
    let prompts = prompts(17);
    let alone: Vec<Ended> = prompts
        .iter()
        .map(|prompt| {
            let prompt = std::slice::from_ref(prompt);
            answers(&place.load(&place.builder().answering(prompt)), prompt).0.remove(0)
        })
        .collect();
    assert!(alone.iter().any(|(_, _, finish)| *finish == FinishReason::Stop), "one meets its stop string");
    let all = place.load(&place.builder().answering(&prompts));
    assert_eq!(all.plan().sequences, 17);
    assert_eq!(answers(&all, &prompts).0, alone);
    // Few at a time, so that they join at many moments; prompts in bits; the cache in other orders; little memory.
    for active in [1, 2, 5] {
        let builder = place.builder().answering(&prompts).active(active);
        assert_eq!(answers(&place.load(&builder), &prompts).0, alone, "{active} at a time");
        let narrow = place.load(&builder.batch_tokens(3));
        assert_eq!(answers(&narrow, &prompts).0, alone, "{active} at a time, 3 tokens a pass");
    }
    let small = place.load(&place.builder().ram(place.least(&prompts)).answering(&prompts));
    assert!(small.plan().plan.streamed > 0);
    assert_eq!(answers(&small, &prompts).0, alone, "under a small budget");
}

#[test]
fn weights_flow_once_for_all() {
    let place = Place::new(LARGE);
    let options = |new| Generation::default().max_new_tokens(new).ignore_eos(true);
    let prompts: Vec<Prompt> = (0..16).map(|i| Prompt::new(vec![5 + i, 7, 9], options(20))).collect();
    // Room for all of them, and for half of the layers.
    let builder = |active| place.builder().answering(&prompts).active(active);
    let fixed = builder(16).plan(&place.checkpoint()).unwrap().fixed;
    let model = &place.load(&builder(16).ram(fixed + LARGE.parameters()));
    assert_eq!((model.plan().sequences, model.plan().batch_tokens), (16, 48));
    let streamed = model.plan().plan.streamed;
    let (one, sixteen) = (answers(model, &prompts[..1]).1, answers(model, &prompts).1);
    // A pass each for the prompt, which gives the first token, and for each token after it.
    assert_eq!((one.passes, sixteen.passes), (20, 20));
    // What is read does not grow with the sequences, but for what reading ahead has begun of a pass that does not come, and
    // for rows of the embedding.
    let (rows, most) = (20 * 16 * 4096, 21 * streamed + 2 * LARGE.parameters());
    assert!(one.disk.bytes >= 20 * streamed && one.disk.bytes <= most, "{} of {streamed}", one.disk.bytes);
    let (less, more) = (one.disk.bytes - streamed, one.disk.bytes + streamed + rows);
    assert!((less..=more).contains(&sixteen.disk.bytes), "{} and {}", one.disk.bytes, sixteen.disk.bytes);
    assert!(rows < streamed, "{streamed}");
    // With half as many at a time there are twice as many passes, but for the one in which prompts are read.
    let eight = place.load(&builder(8));
    assert_eq!(answers(&eight, &prompts).1.passes, 40);
    // Those that join while others are under way cost no pass of their own: it is the longest that counts.
    let new = [40, 10, 10, 10, 10];
    let uneven: Vec<Prompt> = new.map(|new| Prompt::new(vec![3, 4], options(new))).to_vec();
    let two = place.load(&place.builder().answering(&uneven).active(2));
    assert_eq!(answers(&two, &uneven).1.passes, 40);
}

#[test]
fn a_long_prompt_is_one_pass() {
    let place = Place::new(LARGE);
    let ids: Vec<u32> = (0..900).map(|i| 5 + i * 37 % 200).collect();
    let prompt = [Prompt::new(ids, Generation::default().max_new_tokens(1).ignore_eos(true))];
    let run = |builder: &Builder| {
        let model = place.load(&builder.clone().answering(&prompt));
        let (answers, physics) = answers(&model, &prompt);
        let tokens = model.plan().batch_tokens;
        assert_eq!(physics.passes, 900_u64.div_ceil(tokens as u64));
        (answers, physics, tokens, model.plan().plan.streamed)
    };
    let (expected, _, tokens, streamed) = run(&place.builder().ram(1 << 30));
    assert!(
        tokens <= 512 && streamed == 0,
        "where nothing flows, long passes bring nothing: {tokens} tokens"
    );
    // Once there is memory for the activations of all of its tokens, the prompt is read while the weights flow by once.
    let whole = place.builder().answering(&prompt).batch_tokens(900).plan(&place.checkpoint()).unwrap();
    let ram = whole.fixed + LARGE.parameters() / 4;
    let (answers, physics, _, streamed) = run(&place.builder().ram(ram));
    assert!(streamed > 0, "weights flow");
    assert_eq!((answers, physics.passes), (expected.clone(), 1));
    // What flows, what stays, and what is read ahead: two passes would read more.
    let most = 2 * LARGE.parameters() + streamed / 2;
    assert!(physics.disk.bytes <= most, "{} of {streamed}", physics.disk.bytes);
    // Read in pieces it takes more passes, and the answer is the same.
    let (answers, physics, _, streamed) = run(&place.builder().ram(ram).batch_tokens(128));
    assert!(streamed > 0 && physics.passes == 8);
    assert_eq!(answers, expected);
}

#[test]
fn one_that_does_not_fit_is_refused_with_numbers() {
    let place = Place::new(SHAPE);
    let prompts: Vec<Prompt> =
        (0..32).map(|i| Prompt::new(vec![5 + i; 100], Generation::default().max_new_tokens(100))).collect();
    let least = place.least(&prompts);
    let at = |ram| place.builder().ram(ram).answering(&prompts).plan(&place.checkpoint()).unwrap();
    assert_eq!(at(least).sequences, 1);
    let plenty = at(100 * least);
    assert_eq!((plenty.sequences, plenty.context), (32, 32 * 200));
    let error = place.builder().ram(least - 1).answering(&prompts).load(&place.checkpoint()).unwrap_err();
    assert!(matches!(error, Error::Budget { have, .. } if have == least - 1), "{error}");
}
