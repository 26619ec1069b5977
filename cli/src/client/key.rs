//! The admin key that `hothouse up` keeps, found from any folder below its own.

use std::io::ErrorKind;
use std::path::Path;
use std::{env, fs};

use secrecy::SecretString;

use super::Error;

/// The key in the nearest `.hothouse/admin.key`, from the current folder upwards, if there is one.
pub(super) fn find() -> Result<Option<SecretString>, Error> {
    match env::current_dir() {
        Ok(folder) => find_above(&folder),
        // A folder that was removed has no key above it.
        Err(_) => Ok(None),
    }
}

fn find_above(folder: &Path) -> Result<Option<SecretString>, Error> {
    for folder in folder.ancestors() {
        let path = folder.join(".hothouse/admin.key");
        match fs::read_to_string(&path) {
            Ok(key) => return Ok(Some(SecretString::from(key.trim()))),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
            Err(source) => return Err(Error::KeyFile { path, source }),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret as _;

    #[test]
    fn the_nearest_key_upwards_is_taken() {
        let root = env::temp_dir().join(format!("hothouse-key-{}", uuid::Uuid::now_v7()));
        let below = root.join("a/b");
        fs::create_dir_all(&below).unwrap();
        assert!(find_above(&below).unwrap().is_none());

        fs::create_dir_all(root.join(".hothouse")).unwrap();
        fs::write(root.join(".hothouse/admin.key"), "hh_outer\n").unwrap();
        assert_eq!(find_above(&below).unwrap().unwrap().expose_secret(), "hh_outer");

        fs::create_dir_all(root.join("a/.hothouse")).unwrap();
        fs::write(root.join("a/.hothouse/admin.key"), "hh_inner").unwrap();
        assert_eq!(find_above(&below).unwrap().unwrap().expose_secret(), "hh_inner");
        fs::remove_dir_all(root).unwrap();
    }
}
