//! Packets as the guest's driver writes and reads them; on purpose not with the device's code.

/// The guest's context id in tests.
pub const CID: u64 = 3;
/// The host's.
pub const HOST: u64 = 2;

const HEADER: usize = 44;

/// A packet as the guest's driver sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pkt {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    pub len: u32,
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
    pub data: Vec<u8>,
}

impl Pkt {
    /// A packet from the guest to the host.
    pub fn new(op: u16, guest_port: u32, host_port: u32) -> Self {
        Self {
            src_cid: CID,
            dst_cid: HOST,
            src_port: guest_port,
            dst_port: host_port,
            len: 0,
            kind: 1,
            op,
            flags: 0,
            buf_alloc: 256 * 1024,
            fwd_cnt: 0,
            data: Vec::new(),
        }
    }

    pub fn with_data(mut self, data: &[u8]) -> Self {
        self.data = data.to_vec();
        self.len = u32::try_from(data.len()).unwrap();
        self
    }

    pub fn header(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.src_cid.to_le_bytes());
        bytes.extend(self.dst_cid.to_le_bytes());
        bytes.extend(self.src_port.to_le_bytes());
        bytes.extend(self.dst_port.to_le_bytes());
        bytes.extend(self.len.to_le_bytes());
        bytes.extend(self.kind.to_le_bytes());
        bytes.extend(self.op.to_le_bytes());
        bytes.extend(self.flags.to_le_bytes());
        bytes.extend(self.buf_alloc.to_le_bytes());
        bytes.extend(self.fwd_cnt.to_le_bytes());
        bytes
    }

    pub fn parse(bytes: &[u8]) -> Self {
        let u16_at = |at| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap());
        let u32_at = |at| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let u64_at = |at| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let packet = Self {
            src_cid: u64_at(0),
            dst_cid: u64_at(8),
            src_port: u32_at(16),
            dst_port: u32_at(20),
            len: u32_at(24),
            kind: u16_at(28),
            op: u16_at(30),
            flags: u32_at(32),
            buf_alloc: u32_at(36),
            fwd_cnt: u32_at(40),
            data: bytes[HEADER..].to_vec(),
        };
        assert_eq!(
            packet.len as usize,
            packet.data.len(),
            "used length of {packet:?}"
        );
        packet
    }
}

/// How a packet's bytes are cut into descriptors; the last piece takes the rest.
#[derive(Debug, Clone)]
pub enum Layout {
    /// One descriptor.
    Single,
    /// Pieces of these lengths, in bytes.
    Pieces(Vec<u32>),
}

impl Layout {
    pub fn lengths(&self, total: u32) -> Vec<u32> {
        let Self::Pieces(pieces) = self else {
            return vec![total];
        };
        let mut left = total;
        let mut lengths: Vec<_> = pieces
            .iter()
            .map(|length| {
                let length = left.min(*length);
                left -= length;
                length
            })
            .filter(|length| *length > 0)
            .collect();
        if left > 0 {
            lengths.push(left);
        }
        lengths
    }
}
