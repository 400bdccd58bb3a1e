"""Tokens that a template demands and that were never trained, told from the weights' file alone."""

import numpy as np
import pytest
import tiny
import torch

from fate_trl.preflight.untrained import demanded, untrained

CALL = {"name": "pay", "arguments": {"to": "bob"}}
TOOL = {
    "type": "function",
    "function": {
        "name": "pay",
        "description": "Pay.",
        "parameters": {"type": "object", "properties": {"to": {"type": "string"}}, "required": ["to"]},
    },
}


@pytest.fixture(scope="module")
def parts():
    tokenizer = tiny.make_tokenizer()
    return tokenizer, tiny.make_model(tokenizer)


def saved(model, folder, rows, like=()):
    """The model with so many more rows, all alike, and with these tokens' rows like them."""
    size = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(size + rows, mean_resizing=False)
    with torch.no_grad():
        weight = model.get_input_embeddings().weight
        value = torch.linspace(-1, 1, weight.shape[1])
        weight[size:] = value
        for id in like:
            weight[id] = value * 1.001
    model.save_pretrained(folder)
    model.resize_token_embeddings(size, mean_resizing=False)
    return size


def test_an_untrained_token_is_found_and_a_trained_one_is_not(parts, tmp_path):
    tokenizer, _ = parts
    model = tiny.make_model(tokenizer)
    size = saved(model, tmp_path, 8, like=(3,))
    assert untrained(tmp_path, size, [2, 3, 4]) == [3]


def test_without_unused_rows_nothing_is_said(parts, tmp_path):
    tokenizer, _ = parts
    size = saved(tiny.make_model(tokenizer), tmp_path, 2, like=(3,))
    assert untrained(tmp_path, size, [3]) == []
    assert untrained(tmp_path / "missing", size, [3]) == []


def test_padding_that_was_drawn_at_random_tells_nothing(parts, tmp_path):
    tokenizer, _ = parts
    model = tiny.make_model(tokenizer)
    size = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(size + 16, mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[size:].normal_()
    model.save_pretrained(tmp_path)
    assert untrained(tmp_path, size, list(range(size))) == []


def test_shards_are_found_by_their_index(parts, tmp_path):
    tokenizer, _ = parts
    model = tiny.make_model(tokenizer)
    size = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(size + 8, mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[size:] = 0.5
        model.get_input_embeddings().weight[5] = 0.5
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert untrained(tmp_path, size, [4, 5]) == [5]


def test_the_tokens_of_a_call_are_those_of_the_template(parts):
    tokenizer, _ = parts
    words = [tokenizer.decode([id]).strip() for id in demanded(tokenizer, CALL, [TOOL])]
    assert words
    assert np.all([word for word in words])
    assert set(demanded(tokenizer, CALL, [TOOL])) <= set(tokenizer.added_tokens_decoder)


def test_train_tokens_teaches_the_rows_and_leaves_the_others(parts, tmp_path):
    from fate_trl.recipe.schema import Lora, Model
    from fate_trl.train.models import load_model

    tokenizer, model = parts
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    word = tokenizer.convert_ids_to_tokens(5)
    asked = Model(path=str(tmp_path), lora=Lora(r=2, lora_alpha=4), train_tokens=[word])
    first, second = load_model(asked)[0], load_model(asked)[0]
    rows = [made.get_input_embeddings()(torch.tensor([5, 6])).detach() for made in (first, second)]
    assert torch.equal(*rows), "every load starts alike"
    ids = torch.tensor([[4, 5, 6, 5]])
    optimizer = torch.optim.SGD([p for p in first.parameters() if p.requires_grad], lr=1.0)
    first(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    after = first.get_input_embeddings()(torch.tensor([5, 6])).detach()
    assert not torch.allclose(after[0], rows[0][0])
    assert torch.equal(after[1], rows[0][1])


def test_an_adapter_on_the_hub_is_no_model(parts, tmp_path):
    """As transformers gives it: by a hub id nothing can be looked at before it loads."""
    from peft import LoraConfig, get_peft_model

    from fate_trl.errors import RecipeError
    from fate_trl.recipe.schema import Model
    from fate_trl.train.models import load_weights

    _, model = parts
    model.save_pretrained(tmp_path)
    base = type(model).from_pretrained(tmp_path)
    get_peft_model(base, LoraConfig(r=2, target_modules="all-linear")).save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match=r"holds an adapter .* as model\.adapter"):
        load_weights(Model(path=str(tmp_path)))


def test_train_tokens_that_cannot_be(parts, tmp_path):
    from fate_trl.errors import RecipeError
    from fate_trl.recipe.loading import make_recipe
    from fate_trl.recipe.schema import Lora, Model
    from fate_trl.train.models import load_model

    tokenizer, model = parts
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match="'<call>' is no token"):
        load_model(Model(path=str(tmp_path), lora=Lora(), train_tokens=["<call>"]))
    with pytest.raises(RecipeError, match=r"model\.train_tokens needs model\.lora"):
        make_recipe({"model": {"train_tokens": ["<call>"]}, "suites": ["workbench"]})


def test_check_says_it_before_a_run(parts, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from fate_trl.preflight.findings import findings
    from fate_trl.recipe.loading import make_recipe
    from fate_trl.suites.workbench import POLICY

    tokenizer = AutoTokenizer.from_pretrained(POLICY)
    model = AutoModelForCausalLM.from_pretrained(POLICY)
    size = len(tokenizer)
    model.resize_token_embeddings(size + 8, mean_resizing=False)
    added = demanded(tokenizer, CALL, [TOOL])
    with torch.no_grad():
        weight = model.get_input_embeddings().weight
        weight[size:] = 0.3
        weight[added[0]] = 0.3
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    recipe = {"model": {"path": str(tmp_path), "lora": {"r": 4}}, "suites": ["workbench"]}
    [found] = [f for f in findings(make_recipe(recipe)) if f.check == "untrained tokens"]
    assert found.verdict == "error"
    assert found.data["tokens"] == [tokenizer.decode([added[0]])]
    recipe["model"]["train_tokens"] = found.data["tokens"]
    assert not [f for f in findings(make_recipe(recipe)) if f.check == "untrained tokens"]
    recipe["model"] = {"path": str(POLICY)}
    assert not [f for f in findings(make_recipe(recipe)) if f.check == "untrained tokens"]
