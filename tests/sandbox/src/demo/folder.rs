//! The folder of manifests: what is in it, and what changed since the last look.
//!
//! Looks by modification time and size; writes nothing. A file that does not read keeps the
//! objects it had. A file of documents without `kind` (a configuration, say) is not a manifest.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::Value;

use crate::apiserver::{Unreadable, parse_manifest};

/// Far above any folder a demo is run over; what is beyond is not looked at.
const FILES_MAX: usize = 1_000;

/// A folder under watch.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    files: BTreeMap<PathBuf, File>,
}

#[derive(Debug)]
struct File {
    stamp: (SystemTime, u64),
    objects: Vec<Value>,
}

/// What happened to one file.
#[derive(Debug)]
pub struct Change {
    pub path: PathBuf,
    pub what: What,
    /// Objects to create or replace, in the order of the file.
    pub apply: Vec<Value>,
    /// Objects that are in no file any more.
    pub delete: Vec<Object>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum What {
    Added,
    Changed,
    Removed,
    /// The last state stays.
    Unreadable(Unreadable),
}

/// An object's name in the cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Object {
    pub kind: String,
    pub namespace: String,
    pub name: String,
}

// === impl Folder ===

impl Folder {
    /// Everything counts as added at the first look.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            files: BTreeMap::new(),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What changed since the last look.
    pub fn look(&mut self) -> io::Result<Vec<Change>> {
        let present = self.present()?;
        let mut changes = Vec::new();
        let gone: Vec<PathBuf> = self
            .files
            .keys()
            .filter(|path| !present.contains_key(*path))
            .cloned()
            .collect();
        for path in gone {
            let before = self
                .files
                .remove(&path)
                .map(|file| file.objects)
                .unwrap_or_default();
            let delete = self.in_no_file(&before);
            if !before.is_empty() {
                changes.push(Change {
                    path,
                    what: What::Removed,
                    apply: Vec::new(),
                    delete,
                });
            }
        }
        for (path, stamp) in present {
            if self.files.get(&path).is_none_or(|file| file.stamp != stamp) {
                changes.extend(self.read(path, stamp));
            }
        }
        Ok(changes)
    }

    fn read(&mut self, path: PathBuf, stamp: (SystemTime, u64)) -> Option<Change> {
        // A file that goes away between the look and here is gone at the next look.
        let text = std::fs::read_to_string(&path).ok()?;
        let before = self.files.remove(&path);
        let known = before.is_some();
        let before = before.map(|file| file.objects).unwrap_or_default();
        let objects = match parse_manifest(&text) {
            Ok(objects) => objects,
            Err(why) => {
                self.files.insert(
                    path.clone(),
                    File {
                        stamp,
                        objects: before,
                    },
                );
                let (apply, delete) = (Vec::new(), Vec::new());
                return Some(Change {
                    path,
                    what: What::Unreadable(why),
                    apply,
                    delete,
                });
            }
        };
        let manifest = objects.iter().all(|o| o["kind"].is_string());
        let objects = if manifest { objects } else { Vec::new() };
        let apply = objects.clone();
        let empty = objects.is_empty() && before.is_empty();
        self.files.insert(path.clone(), File { stamp, objects });
        let delete = self.in_no_file(&before);
        let what = if known { What::Changed } else { What::Added };
        (!empty).then_some(Change {
            path,
            what,
            apply,
            delete,
        })
    }

    fn present(&self) -> io::Result<BTreeMap<PathBuf, (SystemTime, u64)>> {
        let mut present = BTreeMap::new();
        for entry in std::fs::read_dir(&self.path)?.take(FILES_MAX) {
            let path = entry?.path();
            let extension = path
                .extension()
                .and_then(|e| e.to_str())
                .unwrap_or_default();
            // Editors put half-written files beside the real ones, most with a leading dot.
            let hidden = path
                .file_name()
                .is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
            if hidden || !["yml", "yaml"].contains(&extension) {
                continue;
            }
            // An entry whose metadata cannot be read is gone already.
            if let Ok(metadata) = path.metadata()
                && metadata.is_file()
            {
                present.insert(path, (metadata.modified()?, metadata.len()));
            }
        }
        Ok(present)
    }

    fn in_no_file(&self, objects: &[Value]) -> Vec<Object> {
        let kept: BTreeSet<Object> = self
            .files
            .values()
            .flat_map(|file| &file.objects)
            .map(Object::of)
            .collect();
        objects
            .iter()
            .map(Object::of)
            .filter(|object| !kept.contains(object))
            .collect()
    }
}

// === impl Object ===

impl Object {
    fn of(object: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let namespace = object["metadata"]["namespace"]
            .as_str()
            .unwrap_or("default")
            .to_owned();
        Self {
            kind: text(&object["kind"]),
            namespace,
            name: text(&object["metadata"]["name"]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_look_tells_what_was_added_changed_removed_or_broken() {
        let folder = tempfile::tempdir().unwrap();
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let mut watched = Folder::new(folder.path());
        write("route-sync.yml", "app_domain_name: apps.example.test\n");
        write("a.yml", "kind: Service\nmetadata: {name: a}\n");
        write("notes.txt", "kind: [\n");
        let changes = watched.look().unwrap();
        assert_eq!(changes.len(), 1);
        assert_eq!(changes[0].what, What::Added);
        assert!(watched.look().unwrap().is_empty());

        write("a.yml", "kind: Service\nmetadata: {name: b, more: [\n");
        let changes = watched.look().unwrap();
        assert!(matches!(&changes[0].what, What::Unreadable(why) if why.line.is_some()));
        assert!(changes[0].delete.is_empty(), "the last state stays");

        write(
            "a.yml",
            "kind: Service\nmetadata: {name: longer-than-before}\n",
        );
        let changes = watched.look().unwrap();
        assert_eq!(
            (&changes[0].what, changes[0].apply.len()),
            (&What::Changed, 1)
        );
        assert_eq!(changes[0].delete[0].name, "a");

        std::fs::remove_file(folder.path().join("a.yml")).unwrap();
        let changes = watched.look().unwrap();
        assert_eq!(changes[0].what, What::Removed);
        assert_eq!(changes[0].delete[0].name, "longer-than-before");
    }
}
