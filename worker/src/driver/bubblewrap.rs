//! The bubblewrap driver: no daemon and no image, for development.
