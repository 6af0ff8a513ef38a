//! What a catalog must hold before a model runs on it.
#![allow(clippy::unwrap_used)]

mod common;

use airllm_format::NumFormat;
use airllm_model::arch::Role;
use airllm_model::{Config, bind};
use airllm_stream::{Catalog, Tensor, TensorId};
use common::{catalog, data, json};

fn config(name: &str) -> Config {
    Config::parse(&json(&data("configs").join(format!("{name}.json")))).unwrap()
}

fn tensor<'a>(catalog: &'a mut Catalog, unit: &str, name: &str) -> &'a mut Tensor {
    let id = catalog.find(unit, name).unwrap();
    &mut catalog.units[id.unit].tensors[id.tensor]
}

#[test]
fn every_role_is_found() {
    let config = config("llama_bias");
    let catalog = catalog(&config, |_| NumFormat::Q8);
    let binding = bind(&config, &catalog).unwrap();
    let bias = binding.layer(1, Role::UpBias).unwrap();
    assert_eq!((bias.rows, bias.cols, bias.format), (1, 128, NumFormat::F32));
    assert_eq!(catalog.get(bias.id).unwrap().name, "up_bias");
    let embed = binding.embed().unwrap();
    assert_eq!((embed.rows, embed.cols, embed.format), (288, 64, NumFormat::Q8));
    assert!(binding.head(Role::Head).is_some() && binding.head(Role::Q).is_none());
    assert!(binding.layer(2, Role::Q).is_none());
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let config = config("llama2_mha");
    let good = catalog(&config, |_| NumFormat::F16);
    bind(&config, &good).unwrap();
    let refused = |change: &dyn Fn(&mut Catalog), message: &str| {
        let mut catalog = good.clone();
        change(&mut catalog);
        assert_eq!(bind(&config, &catalog).unwrap_err().to_string(), message);
    };
    refused(
        &|c| tensor(c, "layer.1", "k").name = "kk".into(),
        "layer.1/k: expected [64, 64] (model.layers.1.self_attn.k_proj.weight), found nothing",
    );
    refused(&|c| tensor(c, "layer.2", "down").cols = 64, "layer.2/down: expected [64, 176], found [64, 64]");
    refused(
        &|c| tensor(c, "head", "final_norm").format = NumFormat::F16,
        "head/final_norm: expected a vector of f32, found f16",
    );
    refused(
        &|c| tensor(c, "head", "head").format = NumFormat::Q2,
        "head/head: expected q3 or wider, found q2",
    );
    refused(&|c| c.pass.swap(1, 2), "layer.0/q: expected layer.0/q at place 1 of the pass, found layer.0/k");
    refused(&|c| c.pass.truncate(28), "head/head: expected head/head at place 28 of the pass, found the end");
    refused(
        &|c| c.pass.push(TensorId { unit: 0, tensor: 0 }),
        "pass/end: expected the end at place 29 of the pass, found embed/embed",
    );
    refused(
        &|c| c.pass[0] = TensorId { unit: 99, tensor: 3 },
        "layer.0/attn_norm: expected layer.0/attn_norm at place 0 of the pass, \
         found tensor 3 of unit 99, which does not exist",
    );
    // Tensors beyond the declared ones do no harm outside the pass.
    let mut more = good.clone();
    let mut extra = more.units[0].tensors[0].clone();
    extra.name = "inv_freq".into();
    more.units[0].tensors.push(extra);
    bind(&config, &more).unwrap();
}
