//! What `hothouse up` starts beside itself: private Postgres, private Redis and the three parts of Hothouse.
