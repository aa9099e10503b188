//! `#[hatchery::function]`: from a function to a call, an entry in the table, and its body.

use proc_macro2::TokenStream;
use quote::{ToTokens as _, quote};
use syn::spanned::Spanned as _;
use syn::{
    Error, GenericArgument, Ident, ItemFn, PathArguments, Result, ReturnType, Type, TypeParamBound,
};

use crate::argument::Arguments;

pub(crate) fn expand(args: TokenStream, item: TokenStream) -> Result<TokenStream> {
    if !args.is_empty() {
        return Err(Error::new(args.span(), "`#[hatchery::function]` takes no arguments"));
    }
    let function: ItemFn = syn::parse2(item)?;
    check(&function)?;
    let Arguments { names, patterns, types } = Arguments::of(&function)?;
    let ItemFn { attrs, vis, sig, block } = &function;
    let (name, asyncness) = (&sig.ident, &sig.asyncness);
    let output: Type = match &sig.output {
        ReturnType::Default => syn::parse_quote!(()),
        ReturnType::Type(_, output) => (**output).clone(),
    };
    if let Some(item) = stream_item(&output) {
        return stream(&function, &Arguments { names, patterns, types }, &item);
    }
    let private = private();
    let naming = name_of(&place(&function.to_token_stream()));
    let (call, make, serve) = if is_result(&output) {
        let part = |part: &str| {
            let part = Ident::new(part, output.span());
            quote!(<#output as #private::IsResult>::#part)
        };
        let (ok, err) = (part("Ok"), part("Err"));
        (quote!(::hatchery::Call<#ok, #err>), quote!(call_result), quote!(serve_result))
    } else {
        (quote!(::hatchery::Call<#output>), quote!(call_plain), quote!(serve_plain))
    };
    let run = match asyncness {
        Some(_) => quote!(__body(#(#names),*)),
        None => quote!(async move { __body(#(#names),*) }),
    };
    Ok(quote! {
        #(#attrs)*
        #vis fn #name(#(#names: #types),*) -> #call {
            #asyncness fn __body(#(#patterns: #types),*) -> #output #block
            #naming
            #private::submit! {
                #private::Function::new(__name, |__asked: &#private::Asked| {
                    #private::#serve::<(#(#types,)*), #output, _, _>(
                        __asked,
                        |(#(#names,)*): (#(#types,)*)| #run,
                    )
                })
            }
            #private::#make::<(#(#types,)*), #output, _, _>(
                __name(),
                (#(#names,)*),
                |(#(#names,)*): (#(#types,)*)| #run,
            )
        }
    })
}

/// A function that returns a stream: served as a context in which only the callee speaks.
fn stream(
    function: &ItemFn,
    Arguments { names, patterns, types }: &Arguments<'_>,
    item: &Type,
) -> Result<TokenStream> {
    let ItemFn { attrs, vis, sig, block } = function;
    let (name, output) = (&sig.ident, &sig.output);
    if let Some(asyncness) = &sig.asyncness {
        let what = "a function that returns a stream isn't async itself: remove `async`, and await inside of \
                    the stream";
        return Err(Error::new(asyncness.span(), what));
    }
    let private = private();
    let naming = name_of(&place(&function.to_token_stream()));
    Ok(quote! {
        #(#attrs)*
        #vis fn #name(#(#names: #types),*) -> ::hatchery::StreamCall<#item> {
            fn __body(#(#patterns: #types),*) #output #block
            #naming
            #private::submit! {
                #private::ContextFunction::new(__name, |__asked: &#private::Asked, __raw| {
                    #private::serve_stream::<(#(#types,)*), _, _>(
                        __asked,
                        __raw,
                        |(#(#names,)*): (#(#types,)*)| __body(#(#names),*),
                    )
                })
            }
            #private::stream_call::<(#(#types,)*), #item>(__name(), (#(#names,)*))
        }
    })
}

/// The item of `impl Stream<Item = …>`.
#[allow(clippy::wildcard_enum_match_arm, reason = "every other type, also of later Rust")]
fn stream_item(output: &Type) -> Option<Type> {
    let Type::ImplTrait(bounds) = output else { return None };
    let stream = bounds.bounds.iter().find_map(|bound| match bound {
        TypeParamBound::Trait(bound) => {
            bound.path.segments.last().filter(|last| last.ident == "Stream")
        }
        _ => None,
    })?;
    let PathArguments::AngleBracketed(arguments) = &stream.arguments else { return None };
    arguments.args.iter().find_map(|argument| match argument {
        GenericArgument::AssocType(assigned) if assigned.ident == "Item" => {
            Some(assigned.ty.clone())
        }
        _ => None,
    })
}

pub(crate) fn private() -> TokenStream {
    quote!(::hatchery::__private)
}

/// Where the function stands, and a mark of its text: what a macro makes at one place stands at that
/// place all of it.
pub(crate) fn place(text: &TokenStream) -> TokenStream {
    let mark = format!("#{:08x}", hash(&text.to_string()));
    quote!(::core::concat!(
        ::core::file!(), ":", ::core::line!(), ":", ::core::column!(), #mark
    ))
}

/// FNV-1a: the same for one text in every build.
fn hash(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// What gives the function its name; to stand beside its `__body`.
pub(crate) fn name_of(place: &TokenStream) -> TokenStream {
    let private = private();
    quote! {
        fn __name() -> #private::Name {
            #private::Name::of(&__body, #place)
        }
    }
}

/// What is said of a function with a type that only its caller knows.
pub(crate) const GENERIC: &str = "an actor finds a function by its name, so it can't be generic: write one \
     function for each type, which calls the generic one";

/// What an actor can't be asked to run.
pub(crate) fn check(function: &ItemFn) -> Result<()> {
    let sig = &function.sig;
    if !sig.generics.params.is_empty() {
        return Err(Error::new(sig.generics.span(), GENERIC));
    }
    if let Some(unsafety) = &sig.unsafety {
        return Err(Error::new(unsafety.span(), "a remote caller can't keep an unsafe contract"));
    }
    if let Some(abi) = &sig.abi {
        return Err(Error::new(abi.span(), "a function that actors run is a plain Rust function"));
    }
    if let Some(variadic) = &sig.variadic {
        return Err(Error::new(variadic.span(), "a function that actors run has fixed arguments"));
    }
    Ok(())
}

/// Whether the last part of a type's path says `Result`; aliases are looked through by a trait.
pub(crate) fn is_result(output: &Type) -> bool {
    let Type::Path(path) = output else { return false };
    path.path.segments.last().is_some_and(|last| last.ident == "Result")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(item: TokenStream) -> String {
        expand(TokenStream::new(), item).unwrap_err().to_string()
    }

    #[test]
    fn what_cannot_be_run_remotely_is_refused_with_the_reason() {
        assert!(
            refusal(quote!(
                async fn f<T>(x: T) {}
            ))
            .contains("generic")
        );
        assert!(
            refusal(quote!(
                async fn f(x: impl Copy) {}
            ))
            .contains("generic")
        );
        assert!(
            refusal(quote!(
                async fn f(x: &str) {}
            ))
            .contains("owned")
        );
        assert!(
            refusal(quote!(
                async fn f(&self) {}
            ))
            .contains("without `self`")
        );
        assert!(
            refusal(quote!(
                async fn f((a, b): (u8, u8)) {}
            ))
            .contains("name the argument")
        );
        assert!(
            refusal(quote!(
                async fn f(ref a: u8) {}
            ))
            .contains("plainly")
        );
        assert!(
            refusal(quote!(
                unsafe fn f() {}
            ))
            .contains("unsafe")
        );
    }

    #[test]
    fn a_result_has_two_parts_and_anything_else_has_one() {
        let plain = expand(
            TokenStream::new(),
            quote!(
                async fn f() -> u8 {
                    1
                }
            ),
        )
        .unwrap();
        assert!(plain.to_string().contains("call_plain"));
        let result = quote!(
            async fn f() -> io::Result<u8> {
                Ok(1)
            }
        );
        assert!(expand(TokenStream::new(), result).unwrap().to_string().contains("call_result"));
    }
}
