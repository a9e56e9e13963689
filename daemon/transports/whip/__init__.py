"""WHIP (RFC 9725): audio over WebRTC in, results over a data channel or server-sent events out."""
