//! No crate has a circle of files: whatever a file uses can be understood without it.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use syn::UseTree;
use syn::visit::{self, Visit};

type Names = Vec<String>;
type Files = BTreeMap<Names, File>;

/// The paths in a file's code without its unit tests, each with the name that it is imported by.
#[derive(Default)]
struct File(Vec<(String, Names)>);

impl File {
    fn import(&mut self, tree: &UseTree, mut path: Names) {
        let (name, known_as) = match tree {
            UseTree::Group(group) => {
                return group.items.iter().for_each(|tree| self.import(tree, path.clone()));
            }
            UseTree::Glob(_) => return self.0.push((String::new(), path)),
            UseTree::Path(part) => {
                path.push(part.ident.to_string());
                return self.import(&part.tree, path);
            }
            UseTree::Name(name) => (&name.ident, &name.ident),
            UseTree::Rename(name) => (&name.ident, &name.rename),
        };
        path.push(name.to_string());
        self.0.push((known_as.to_string(), path));
    }
}

impl Visit<'_> for File {
    fn visit_item_mod(&mut self, module: &syn::ItemMod) {
        if !module.attrs.iter().any(|attribute| attribute.path().is_ident("cfg")) {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_use(&mut self, item: &syn::ItemUse) {
        self.import(&item.tree, Names::new());
    }

    fn visit_path(&mut self, path: &syn::Path) {
        // One name is what stands in `pub(crate)`, or was imported.
        if path.segments.len() > 1 {
            self.0.push((String::new(), path.segments.iter().map(|part| part.ident.to_string()).collect()));
        }
        visit::visit_path(self, path);
    }
}

/// Reads every file of a crate, by its module.
fn read(directory: &Path, parent: &Names, files: &mut Files) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let (path, mut module) = (entry.unwrap().path(), parent.clone());
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        module.extend((!["lib", "main", "mod"].contains(&name.as_str())).then_some(name));
        if path.is_dir() {
            read(&path, &module, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let code = syn::parse_file(&std::fs::read_to_string(path).unwrap()).unwrap();
            files.entry(module).or_default().visit_file(&code);
        }
    }
}

/// The file that a path in a module leads to, through what others re-export; `None` for what is of another crate.
fn target(files: &Files, module: &[String], path: &[String], depth: usize) -> Option<Names> {
    let supers = path.iter().take_while(|name| *name == "super").count();
    let (base, rest) = match path.first()?.as_str() {
        "crate" => (&module[..0], &path[1..]),
        "self" => (module, &path[1..]),
        _ => (&module[..module.len().checked_sub(supers)?], &path[supers..]),
    };
    let full = [base, rest].concat();
    let known = (0..=full.len()).rev().find(|known| files.contains_key(&full[..*known]))?;
    if rest.len() == path.len() && known <= module.len() {
        return None;
    }
    let (file, rest) = full.split_at(known);
    let re_exported = files[file].0.iter().find(|(name, _)| depth < 8 && rest.first() == Some(name));
    let re_exported = re_exported.and_then(|(_, path)| target(files, file, path, depth + 1));
    Some(re_exported.unwrap_or_else(|| file.to_vec()))
}

#[test]
fn no_crate_has_a_circle_of_files() {
    for name in ["crates/domain", "crates/messaging", "crates/storage", "crates/worker", "xtask"] {
        let mut files = Files::new();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(name).join("src");
        read(&source, &Names::new(), &mut files);
        let uses = |(module, File(paths)): (&Names, &File)| {
            let used: BTreeSet<Names> =
                paths.iter().filter_map(|(_, path)| target(&files, module, path, 0)).collect();
            (module.clone(), &used - &BTreeSet::from([module.clone()]))
        };
        let mut left: BTreeMap<Names, BTreeSet<Names>> = files.iter().map(uses).collect();
        assert!(left.values().flatten().count() > 10, "{name}: its files use each other");
        // What uses nothing that is left is in no circle.
        while let Some(done) = left.iter().find(|(_, used)| !used.iter().any(|used| left.contains_key(used)))
        {
            left.remove(&done.0.clone());
        }
        assert!(left.is_empty(), "{name}: a circle, or on the way to one: {left:#?}");
    }
}
