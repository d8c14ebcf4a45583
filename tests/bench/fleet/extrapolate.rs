use crate::measure::Figures;
pub(crate) fn print(_alone: &Figures, _one: &Figures) {}
