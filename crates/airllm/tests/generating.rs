//! Generation: the same tokens whatever the budget and the company, and every way to end.
#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

use airllm::{AutoModel, Builder, Cancel, Error, FinishReason, Generation, Message};
use airllm_tests::checkpoint::{Checkpoint, Shape};
use std::path::PathBuf;

struct Tiny {
    dir: tempfile::TempDir,
}

impl Tiny {
    fn new() -> Tiny {
        let dir = tempfile::tempdir().unwrap();
        let shape = Shape { layers: 4, context: 128, ..Shape::TINY };
        Checkpoint::new(shape).write(&dir.path().join("model")).unwrap();
        Tiny { dir }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("model")
    }

    fn builder(&self) -> Builder {
        AutoModel::builder().device(airllm::Device::Cpu).home(self.dir.path().join("home")).threads(2)
    }

    fn load(&self, builder: Builder) -> AutoModel {
        builder.from_pretrained(self.path().to_str().unwrap()).unwrap()
    }
}

/// Ids, text and end of every answer, and the hash of the logits.
type Outcome = (Vec<(Vec<u32>, String, FinishReason)>, String);

fn run(model: &AutoModel, prompts: &[Vec<u32>], options: &Generation) -> Outcome {
    let mut run = model.generate_ids(prompts.to_vec(), options).unwrap();
    let mut texts = vec![String::new(); prompts.len()];
    for piece in run.by_ref() {
        let piece = piece.unwrap();
        texts[piece.prompt].push_str(&piece.text);
    }
    let hash = run.physics().logits_hash;
    let answers = run.answers().zip(texts).map(|(answer, text)| {
        assert_eq!(answer.text, text);
        (answer.ids.clone(), text, answer.finish.unwrap())
    });
    (answers.collect(), hash)
}

fn prompts() -> Vec<Vec<u32>> {
    vec![vec![5, 6, 7, 8, 9, 10, 11], vec![100], vec![72, 101, 108, 108, 111]]
}

#[test]
fn budgets_change_nothing() {
    let tiny = Tiny::new();
    let options = Generation::default().max_new_tokens(12).temperature(0.8).seed(9);
    let plenty = tiny.load(tiny.builder());
    assert_eq!(plenty.plan().plan.streamed, 0);
    let (expected, _) = run(&plenty, &prompts()[..1], &options);
    let expected_hash = run(&plenty, &prompts()[..1], &options).1;
    let least = match tiny.builder().ram(1).cache_tokens(20).from_pretrained(tiny.path().to_str().unwrap()) {
        Err(Error::Budget { need, have: 1, .. }) => need,
        other => panic!("{other:?}"),
    };
    for ram in [least, least + 100_000, least + 300_000] {
        for readers in [1, 3] {
            let model = tiny.load(tiny.builder().ram(ram).cache_tokens(20).readers(readers));
            assert!(model.plan().plan.streamed > 0 || ram > least, "{:?}", model.plan());
            assert_eq!(run(&model, &prompts()[..1], &options), (expected.clone(), expected_hash.clone()));
        }
    }
    let less = tiny.builder().ram(least - 1).cache_tokens(20).from_pretrained(tiny.path().to_str().unwrap());
    assert!(matches!(less, Err(Error::Budget { .. })));
}

#[test]
fn company_changes_nothing() {
    let tiny = Tiny::new();
    let options = Generation::default().max_new_tokens(10).temperature(1.0).seed(4).repetition_penalty(1.2);
    let model = tiny.load(tiny.builder().max_batch(3));
    let (together, _) = run(&model, &prompts(), &options);
    for (prompt, expected) in prompts().into_iter().zip(&together) {
        assert_eq!(&run(&model, &[prompt], &options).0, std::slice::from_ref(expected));
    }
    // With room for one at a time the others wait; with two tokens a pass prompts come in bits.
    let narrow = tiny.load(tiny.builder().cache_tokens(17).batch_tokens(2));
    assert_eq!(run(&narrow, &prompts(), &options).0, together);
}

#[test]
fn ends() {
    let tiny = Tiny::new();
    let model = tiny.load(tiny.builder());
    let prompt = &prompts()[..1];
    let options = Generation::default().max_new_tokens(20).ignore_eos(true);
    let (whole, _) = run(&model, prompt, &options);
    let (ids, text, finish) = whole[0].clone();
    assert_eq!((ids.len(), finish), (20, FinishReason::Length));

    // A stop string cuts the text before itself, wherever the pieces end.
    let chars: Vec<char> = text.chars().collect();
    let stop: String = chars[chars.len() / 2..].iter().take(2).collect();
    let (stopped, _) = run(&model, prompt, &options.clone().stop(&stop));
    assert_eq!(stopped[0].1, text[..text.find(&stop).unwrap()]);
    assert_eq!(stopped[0].2, FinishReason::Stop);
    assert!(ids.starts_with(&stopped[0].0));

    // No tokens asked for, none given.
    let none = run(&model, prompt, &options.clone().max_new_tokens(0)).0;
    assert_eq!(none, [(vec![], String::new(), FinishReason::Length)]);
}

#[test]
fn the_end_token_ends_and_counts() {
    let tiny = Tiny::new();
    let model = tiny.load(tiny.builder());
    let options = Generation::default().max_new_tokens(20).ignore_eos(true);
    let ids = run(&model, &prompts()[..1], &options).0[0].0.clone();
    let first = ids.iter().position(|id| ids.iter().filter(|x| *x == id).count() == 1).unwrap_or(0);
    let config = serde_json::json!({ "eos_token_id": [ids[first], 9999] });
    std::fs::write(tiny.path().join("generation_config.json"), config.to_string()).unwrap();
    let model = tiny.load(tiny.builder());
    let stopped = run(&model, &prompts()[..1], &Generation::default().max_new_tokens(20)).0;
    assert_eq!((&stopped[0].0[..], stopped[0].2), (&ids[..=first], FinishReason::Stop));
    assert_eq!(run(&model, &prompts()[..1], &options).0[0].0, ids);
}

#[test]
fn contexts() {
    let tiny = Tiny::new();
    let model = tiny.load(tiny.builder());
    let options = Generation::default().max_new_tokens(20).ignore_eos(true);
    let long: Vec<u32> = (0..129).map(|i| i % 200).collect();
    match model.generate_ids(vec![long.clone()], &options).map(drop) {
        Err(Error::Context { prompt: 129, context: 128, .. }) => {}
        other => panic!("{other:?}"),
    }
    assert!(matches!(model.forward(&long), Err(Error::Context { prompt: 129, .. })));
    // An answer ends where the context does.
    let (answers, _) = run(&model, &[long[..120].to_vec()], &options);
    assert_eq!((answers[0].0.len(), answers[0].2), (8, FinishReason::Length));
    // A caller may set another limit, in both directions.
    let wide = tiny.load(tiny.builder().context(200));
    assert_eq!(wide.forward(&long).unwrap().rows, 129);
    let narrow = tiny.load(tiny.builder().context(10));
    assert!(narrow.generate_ids(vec![long[..11].to_vec()], &options).is_err());
}

#[test]
fn bad_prompts() {
    let tiny = Tiny::new();
    let model = tiny.load(tiny.builder());
    let options = Generation::default();
    let error = model.generate_ids(vec![vec![1, 999]], &options).map(drop).unwrap_err().to_string();
    assert!(error.contains("999") && error.contains("264"), "{error}");
    assert!(model.generate_ids(vec![vec![]], &options).is_err());
    assert!(model.generate_ids(vec![vec![1]], &options.clone().temperature(-1.0)).is_err());
    assert!(model.forward(&[999]).is_err());
    // None of that harms the model.
    assert_eq!(model.forward(&[]).unwrap().rows, 0);
    assert_eq!(model.forward(&[1, 2]).unwrap().rows, 2);
}

#[test]
fn one_generation_at_a_time() {
    let tiny = Tiny::new();
    let model = tiny.load(tiny.builder());
    let options = Generation::default().max_new_tokens(5);
    let mut first = model.generate_ids(prompts()[..1].to_vec(), &options).unwrap();
    first.next().unwrap().unwrap();
    assert!(matches!(model.forward(&[1]), Err(Error::Busy)));
    drop(first);
    // A dropped run gives its cache back.
    for _ in 0..3 {
        assert_eq!(run(&model, &prompts()[..1], &options).0.len(), 1);
    }
}

#[test]
fn cancelling_keeps_what_there_is() {
    let tiny = Tiny::new();
    let cancel = Cancel::new();
    let model = tiny.load(tiny.builder().cancel(&cancel));
    let options = Generation::default().max_new_tokens(100).ignore_eos(true);
    let mut run = model.generate_ids(prompts()[..1].to_vec(), &options).unwrap();
    for _ in 0..3 {
        run.next().unwrap().unwrap();
    }
    cancel.stop();
    let last = run.next().unwrap().unwrap();
    assert_eq!((last.id, last.finish), (None, Some(FinishReason::Interrupted)));
    assert!(run.next().is_none());
    assert_eq!(run.answers().next().unwrap().ids.len(), 3);
    drop(run);
    assert!(matches!(model.forward(&[1]), Err(Error::Interrupted)));
}

#[test]
fn text_goes_through_the_tokenizer() {
    let tiny = Tiny::new();
    let model = tiny.load(tiny.builder());
    let options = Generation::default().max_new_tokens(6);
    let answer = model.complete("Hello", &options).unwrap();
    assert_eq!(answer.prompt_ids, model.tokenizer().unwrap().encode("Hello", true).unwrap());
    assert_eq!(answer.ids, run(&model, std::slice::from_ref(&answer.prompt_ids), &options).0[0].0);
    // Without a tokenizer ids still work, and text is refused with a reason.
    std::fs::remove_file(tiny.path().join("tokenizer.json")).unwrap();
    let mute = tiny.load(tiny.builder().home(tiny.dir.path().join("other")));
    assert!(mute.generate("Hello", &options).map(drop).unwrap_err().to_string().contains("tokenizer"));
    let (answers, _) = run(&mute, &[answer.prompt_ids], &options);
    assert_eq!((&answers[0].0, answers[0].1.as_str()), (&answer.ids, ""));
}

#[test]
fn physics_and_timeline() {
    let tiny = Tiny::new();
    let model = tiny.load(tiny.builder().timeline(true));
    let options = Generation::default().max_new_tokens(5).ignore_eos(true);
    let mut run = model.generate_ids(prompts()[..1].to_vec(), &options).unwrap();
    run.by_ref().for_each(|piece| drop(piece.unwrap()));
    let (physics, timings) = (run.physics(), run.timings());
    assert!(physics.tokens_per_s > 0.0 && physics.prompt_tokens_per_s > 0.0);
    // All of a pass's weights are leased each time.
    assert_eq!(physics.memory.bytes_per_token as u64, model.plan().plan.bytes_per_pass);
    assert!(timings.total_s >= timings.first_token_s && timings.first_token_s > 0.0);
    assert!(run.gantt(40).contains("compute"));
    let trace: serde_json::Value = serde_json::from_str(&run.chrome_trace()).unwrap();
    assert!(trace["traceEvents"].as_array().unwrap().iter().any(|event| event["name"] == "layer.3"));
}

#[test]
fn a_conversation_ends_where_its_format_says() {
    let tiny = Tiny::new();
    std::fs::write(
        tiny.path().join("chat_template.jinja"),
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}",
    )
    .unwrap();
    let model = tiny.load(tiny.builder());
    let chat = model.chat().unwrap();
    let messages = [Message::system("a"), Message::user("b")];
    assert_eq!(chat.text(&messages).unwrap(), "<system>a<user>b");
    let ids = chat.ids(&messages).unwrap();
    assert_eq!(ids, model.tokenizer().unwrap().encode("<system>a<user>b", false).unwrap());

    let options = Generation::default().max_new_tokens(9).ignore_eos(true);
    let (all, _) = run(&model, std::slice::from_ref(&ids), &options);
    let third = all[0].0[2];
    let until = all[0].0.iter().position(|id| *id == third).unwrap() + 1;
    let (some, _) = run(&model, std::slice::from_ref(&ids), &options.ignore_eos(false).stop_ids(&[third]));
    assert_eq!((&some[0].0[..], some[0].2), (&all[0].0[..until], FinishReason::Stop));
}

#[test]
fn a_flag_of_its_own_ends_one_run_and_not_the_model() {
    let tiny = Tiny::new();
    let model = tiny.load(tiny.builder());
    let options = Generation::default().max_new_tokens(20).ignore_eos(true);
    let flag = Cancel::new();
    let mut generate = model.generate_ids(prompts(), &options).unwrap();
    generate.end_when(&flag);
    generate.next().unwrap().unwrap();
    flag.stop();
    assert!(generate.by_ref().all(|piece| piece.is_ok()));
    assert!(generate.answers().all(|answer| answer.finish == Some(FinishReason::Interrupted)));
    drop(generate);
    let (answers, _) = run(&model, &prompts(), &options);
    assert!(answers.iter().all(|answer| answer.0.len() == 20));
}

#[test]
fn a_plan_says_what_is_repacked_while_it_is_read() {
    let Some(shared) = airllm_tests::shared::dir() else { return };
    let home = tempfile::tempdir().unwrap();
    let plan = |name: &str, ram: u64| {
        let builder = AutoModel::builder()
            .device(airllm::Device::Cpu)
            .home(home.path())
            .context(64)
            .ram(ram)
            .slot_bytes(16 << 10);
        let checkpoint = builder.find(shared.join("fixtures").join(name).to_str().unwrap()).unwrap();
        builder.plan(&checkpoint).unwrap()
    };
    let small = plan("gptq_sym_g128", 5_300_000);
    assert!(small.plan.streamed > 0 && small.repacked > 0, "{:?}", small.plan);
    assert!(small.repacked <= small.plan.streamed);
    assert_eq!(plan("gptq_sym_g128", 1_000_000_000).repacked, 0, "all of it stays in memory");
    assert_eq!(plan("llama2_mha", 5_300_000).repacked, 0, "nothing to repack");
}
