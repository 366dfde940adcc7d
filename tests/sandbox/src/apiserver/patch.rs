//! PATCH bodies: merge patches (RFC 7386), strategic merges taken as such, and JSON patches
//! (RFC 6902, without `move` and `copy`).
//!
//! A strategic merge differs from a merge patch in lists with a merge key alone; here such a list
//! is replaced as a whole.

use serde_json::Value;

use super::status::Status;

/// `object` with the patch applied.
pub(super) fn apply(content_type: &str, object: &Value, body: &Value) -> Result<Value, Status> {
    let mut patched = object.clone();
    match content_type.split(';').next().unwrap_or_default().trim() {
        "application/merge-patch+json" | "application/strategic-merge-patch+json" => {
            merge(&mut patched, body);
            Ok(patched)
        }
        "application/json-patch+json" => {
            let operations = body.as_array().ok_or_else(|| {
                Status::bad_request(
                    "json: cannot unmarshal object into Go value of type []jsonPatchOp",
                )
            })?;
            for operation in operations {
                step(&mut patched, operation)?;
            }
            Ok(patched)
        }
        other => Err(Status::new(
            415,
            "UnsupportedMediaType",
            format!(
                "the body of the request was in an unknown format - accepted media types include: \
                 application/json-patch+json, application/merge-patch+json, \
                 application/strategic-merge-patch+json (got `{other}`)"
            ),
        )),
    }
}

fn merge(target: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Some(target) = target.as_object_mut() else {
        return;
    };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key).or_insert(Value::Null), value);
        }
    }
}

/// One operation of a JSON patch.
fn step(object: &mut Value, operation: &Value) -> Result<(), Status> {
    let path = operation["path"].as_str().unwrap_or_default();
    let refuse = || {
        Status::new(
            422,
            "Invalid",
            "the server rejected our request due to an error in our request",
        )
    };
    let value = &operation["value"];
    if operation["op"] == "test" {
        return if object.pointer(path) == Some(value) {
            Ok(())
        } else {
            Err(refuse())
        };
    }
    let (parent, key) = path.rsplit_once('/').ok_or_else(refuse)?;
    let key = key.replace("~1", "/").replace("~0", "~");
    let parent = object.pointer_mut(parent).ok_or_else(refuse)?;
    match (operation["op"].as_str().unwrap_or_default(), parent) {
        ("add", Value::Object(map)) => drop(map.insert(key, value.clone())),
        ("replace", Value::Object(map)) => {
            *map.get_mut(&key).ok_or_else(refuse)? = value.clone();
        }
        ("remove", Value::Object(map)) => drop(map.remove(&key).ok_or_else(refuse)?),
        ("add", Value::Array(list)) if key == "-" => list.push(value.clone()),
        (op, Value::Array(list)) => {
            let index: usize = key.parse().map_err(|_| refuse())?;
            match op {
                "add" if index <= list.len() => list.insert(index, value.clone()),
                "replace" if index < list.len() => list[index] = value.clone(),
                "remove" if index < list.len() => drop(list.remove(index)),
                _ => return Err(refuse()),
            }
        }
        _ => return Err(refuse()),
    }
    Ok(())
}
